//! Archives written by hand: what honest tools do not write.

use sha2::{Digest, Sha256};

const BLOCK: usize = 512;

/// A tar, entry by entry.
#[derive(Clone, Default)]
pub(crate) struct Tar(Vec<u8>);

impl Tar {
    pub(crate) fn new() -> Tar {
        Tar::default()
    }

    pub(crate) fn file(self, path: &str, content: &[u8]) -> Tar {
        self.entry(path, b'0', "", content)
    }

    pub(crate) fn directory(self, path: &str) -> Tar {
        self.entry(path, b'5', "", b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Tar {
        self.entry(path, b'2', target, b"")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Tar {
        self.entry(path, b'1', target, b"")
    }

    /// An extended header for what follows.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let text: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.entry("pax", b'x', "", &text)
    }

    pub(crate) fn entry(mut self, path: &str, kind: u8, link: &str, content: &[u8]) -> Tar {
        self.0.extend(header(path, kind, link, content.len() as u64));
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Tar {
        self.0.extend_from_slice(bytes);
        self
    }

    /// The bytes so far.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The whole, with its end mark.
    pub(crate) fn end(self) -> Vec<u8> {
        self.raw(&[0; 2 * BLOCK]).0
    }
}

/// A header with a right checksum.
pub(crate) fn header(path: &str, kind: u8, link: &str, size: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    header[..path.len()].copy_from_slice(path.as_bytes());
    header[100..108].copy_from_slice(b"0000755\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    header[136..147].copy_from_slice(b"13500000000");
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header[257..265].copy_from_slice(b"ustar\x0000");
    sign(&mut header);
    header
}

/// Puts the checksum right.
pub(crate) fn sign(header: &mut [u8; BLOCK]) {
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// SHA-256 in hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The configuration of an image with layers of these digests.
pub(crate) fn configuration(diff_ids: &[String]) -> String {
    let ids: Vec<String> = diff_ids.iter().map(|id| format!("\"sha256:{id}\"")).collect();
    format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    )
}

/// An archive as `docker save` writes it, with one image named `hostile`.
pub(crate) fn docker_archive(layers: &[Vec<u8>]) -> Vec<u8> {
    let ids: Vec<String> = layers.iter().map(|layer| sha256(layer)).collect();
    let config = configuration(&ids);
    let names: Vec<String> = ids.iter().map(|id| format!("\"{id}.tar\"")).collect();
    let manifest = format!(
        r#"[{{"Config":"config.json","RepoTags":["hostile"],"Layers":[{}]}}]"#,
        names.join(",")
    );
    let tar = ids
        .iter()
        .zip(layers)
        .fold(Tar::new(), |tar, (id, layer)| tar.file(&format!("{id}.tar"), layer));
    tar.file("config.json", config.as_bytes()).file("manifest.json", manifest.as_bytes()).end()
}
