# The crates of the programs as a CycloneDX document, from `cargo metadata` and the checksums of Cargo.lock.
($metadata[0]) as $cargo
| ($checksums | split("\n") | map(split(" ") | select(length == 3) | {key: (.[0] + "@" + .[1]), value: .[2]}) | from_entries) as $sums
| ($cargo.packages | map({key: .id, value: .}) | from_entries) as $packages
| ($cargo.resolve.nodes | map({key: .id, value: .}) | from_entries) as $nodes
| ["libmsb", "msb-agent", "msb-image", "msb-metrics", "msb-net", "msb-oci", "msb-run", "msb-vmm", "msb-ssh"] as $programs
| ($cargo.packages | map(select(.source == null and (.name | IN($programs[]))) | .id)) as $roots
| def normal: .deps | map(select(.dep_kinds | any(.kind == null or .kind == "build")) | .pkg);
  def closure($seen; $open):
    if ($open | length) == 0 then $seen
    else ([$open[] | $nodes[.] | normal[]] | unique - $seen) as $new | closure(($seen + $new | unique); $new) end;
  closure($roots; $roots) as $ids
| def ref: $packages[.] | "pkg:cargo/" + .name + "@" + .version;
  {
    bomFormat: "CycloneDX",
    specVersion: "1.5",
    version: 1,
    metadata: {
      timestamp: $time,
      component: {"bom-ref": ("msb@" + $version), type: "application", name: "msb", version: $version,
        licenses: [{expression: "Apache-2.0"}]}
    },
    components: ($ids | map($packages[.] | select(.source != null) | {
      "bom-ref": ("pkg:cargo/" + .name + "@" + .version),
      type: "library",
      name: .name,
      version: .version,
      purl: ("pkg:cargo/" + .name + "@" + .version),
      licenses: (if .license then [{expression: (.license | gsub("/"; " OR "))}] else [] end),
      hashes: (if $sums[.name + "@" + .version] then [{alg: "SHA-256", content: $sums[.name + "@" + .version]}] else [] end)
    }) | sort_by(.["bom-ref"])),
    dependencies: ([{ref: ("msb@" + $version), dependsOn: ([$roots[] | $nodes[.] | normal[] | select($packages[.].source != null) | ref] | unique)}]
      + ($ids | map(select($packages[.].source != null) | {ref: ref, dependsOn: ($nodes[.] | normal | map(ref) | unique)}) | sort_by(.ref)))
  }
