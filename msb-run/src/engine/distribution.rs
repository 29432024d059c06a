//! The host's distribution, and the commands that install missing parts there.

/// File that identifies the distribution (os-release(5)).
const RELEASE: &str = "/etc/os-release";

/// A part that an engine needs from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostPackage {
    /// QEMU for this processor.
    Qemu,
    /// A kernel with its modules, for the guests of QEMU.
    Kernel,
    /// libkrunfw, the kernel for the guests of libkrun.
    Krunfw,
}

/// IDs of distributions, with the commands for QEMU, a kernel and libkrunfw.
type DistributionCommands = (&'static [&'static str], [&'static str; 3]);

/// Commands by the `ID` or `ID_LIKE` in os-release. Debian's kernel package does not exist on
/// Ubuntu, and Ubuntu's kernels are not readable for users, so Ubuntu has a row of its own before
/// Debian's.
const FAMILIES: [DistributionCommands; 8] = [
    (
        &["ubuntu"],
        [
            "sudo apt-get install qemu-system-x86",
            "sudo apt-get install linux-image-virtual && sudo chmod a+r /boot/vmlinuz-*",
            "sudo apt-get install libkrunfw5 where the release has it, \
             else with Homebrew: brew install libkrunfw",
        ],
    ),
    (
        &["debian"],
        [
            "sudo apt-get install qemu-system-x86",
            "sudo apt-get install linux-image-cloud-amd64",
            "sudo apt-get install libkrunfw5 where the release has it, \
             else with Homebrew: brew install libkrunfw",
        ],
    ),
    (
        &["rhel", "centos"],
        [
            "not in the distribution: brew install qemu, or nix profile install nixpkgs#qemu",
            "sudo dnf install kernel-core",
            "sudo dnf install libkrunfw",
        ],
    ),
    (
        &["fedora"],
        [
            "sudo dnf install qemu-system-x86-core",
            "sudo dnf install kernel-core",
            "sudo dnf install libkrunfw",
        ],
    ),
    (&["arch"], ["sudo pacman -S qemu-base", "sudo pacman -S linux", "sudo pacman -S libkrunfw"]),
    (
        &["suse", "opensuse", "opensuse-tumbleweed"],
        [
            "sudo zypper install qemu-x86",
            "sudo zypper install kernel-default",
            "sudo zypper install libkrunfw5",
        ],
    ),
    (
        &["alpine"],
        ["sudo apk add qemu-system-x86_64", "sudo apk add linux-virt", "sudo apk add libkrunfw"],
    ),
    (
        &["nixos"],
        [
            "nix profile install nixpkgs#qemu",
            "name one: MSB_KERNEL=/path/to/vmlinux",
            "nix profile install nixpkgs#libkrunfw",
        ],
    ),
];

/// Commands for other distributions.
const ELSEWHERE: [&str; 3] = [
    "install qemu-system-x86_64 with the system's package manager, or: brew install qemu",
    "install a kernel with its modules with the system's package manager, \
     or name one: MSB_KERNEL=/path/to/vmlinux",
    "install libkrunfw 5 with the system's package manager, \
     or with Homebrew: brew install libkrunfw",
];

/// Returns the command that installs a part on this host.
pub(crate) fn how_to_install(part: HostPackage) -> &'static str {
    command(&release(), part)
}

/// Returns the name of the distribution.
pub(crate) fn name() -> Option<String> {
    value(&release(), "PRETTY_NAME")
}

fn release() -> String {
    std::fs::read_to_string(RELEASE).unwrap_or_default()
}

fn command(release: &str, part: HostPackage) -> &'static str {
    let ids = ["ID", "ID_LIKE"].map(|key| value(release, key).unwrap_or_default());
    let families = ids.iter().flat_map(|ids| ids.split_whitespace());
    let known = families.into_iter().find_map(|id| {
        FAMILIES.iter().find(|(names, _)| names.contains(&id)).map(|(_, commands)| commands)
    });
    known.unwrap_or(&ELSEWHERE)[part as usize]
}

fn value(release: &str, key: &str) -> Option<String> {
    let line = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(line.trim_matches(['"', '\'']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_own_commands() {
        let cases = [
            ("ID=debian\nVERSION_ID=\"12\"\n", "apt-get", "linux-image-cloud-amd64"),
            ("ID=ubuntu\nID_LIKE=debian\n", "apt-get", "linux-image-virtual"),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", "apt-get", "linux-image-virtual"),
            ("ID=fedora\n", "dnf", "kernel-core"),
            ("ID=arch\n", "pacman", "linux"),
            ("ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n", "zypper", "kernel-default"),
            ("ID=alpine\n", "apk", "linux-virt"),
            ("ID=nixos\n", "nix", "MSB_KERNEL"),
            ("ID=haiku\n", "brew", "MSB_KERNEL"),
            ("", "brew", "MSB_KERNEL"),
        ];
        for (release, manager, kernel) in cases {
            for part in [HostPackage::Qemu, HostPackage::Krunfw] {
                let how = command(release, part);
                assert!(how.contains(manager), "{release}: {how}");
            }
            assert!(command(release, HostPackage::Kernel).contains(kernel), "{release}");
        }
    }

    #[test]
    fn a_descendant_has_the_commands_of_its_nearest_ancestor() {
        let rocky = "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n";
        assert!(command(rocky, HostPackage::Qemu).contains("not in the distribution"));
        assert!(command(rocky, HostPackage::Krunfw).contains("dnf"));
    }

    #[test]
    fn a_name_is_read_without_its_quotes() {
        let release = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n";
        let name = value(release, "PRETTY_NAME");
        assert_eq!(name.as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
        assert_eq!(value("ID=arch\n", "ID_LIKE"), None);
    }
}
