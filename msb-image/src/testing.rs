//! Archives and stores for tests.

/// Formats a record of a PAX extended header.
pub fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// A builder of a tar.
#[derive(Default)]
pub struct TarBuilder {
    bytes: Vec<u8>,
}

impl TarBuilder {
    /// Creates an empty archive.
    pub fn new() -> TarBuilder {
        TarBuilder::default()
    }

    /// Builds a ustar header with a valid checksum.
    pub fn header(name: &str, flag: u8, size: u64) -> [u8; 512] {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        header[136..148].copy_from_slice(b"14000000000\0");
        header[156] = flag;
        header[257..265].copy_from_slice(b"ustar\x0000");
        sign(&mut header);
        header
    }

    /// Appends bytes as they are.
    pub fn raw(mut self, bytes: &[u8]) -> TarBuilder {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends a header after computing its checksum.
    pub fn raw_header(self, mut header: [u8; 512]) -> TarBuilder {
        sign(&mut header);
        self.raw(&header)
    }

    /// Appends a regular file.
    pub fn file(self, name: &str, contents: &[u8]) -> TarBuilder {
        self.raw_header(TarBuilder::header(name, b'0', contents.len() as u64)).contents(contents)
    }

    /// Appends a directory.
    pub fn directory(self, name: &str, mode: u32) -> TarBuilder {
        let mut header = TarBuilder::header(name, b'5', 0);
        header[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
        self.raw_header(header)
    }

    /// Appends a symbolic link.
    pub fn symlink(self, name: &str, target: &str) -> TarBuilder {
        self.link(name, b'2', target)
    }

    /// Appends a hard link.
    pub fn hard_link(self, name: &str, target: &str) -> TarBuilder {
        self.link(name, b'1', target)
    }

    /// Appends a device node; `flag` is the type flag of ustar.
    pub fn device(self, name: &str, flag: u8, major: u32, minor: u32) -> TarBuilder {
        let mut header = TarBuilder::header(name, flag, 0);
        header[329..337].copy_from_slice(format!("{major:07o}\0").as_bytes());
        header[337..345].copy_from_slice(format!("{minor:07o}\0").as_bytes());
        self.raw_header(header)
    }

    /// Appends a FIFO.
    pub fn fifo(self, name: &str) -> TarBuilder {
        self.raw_header(TarBuilder::header(name, b'6', 0))
    }

    /// Appends an extended header of PAX for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> TarBuilder {
        let text: Vec<u8> =
            records.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
        self.extension(b'x', &text)
    }

    /// Appends a GNU long name for the next entry.
    pub fn long_name(self, name: &str) -> TarBuilder {
        let mut bytes = name.as_bytes().to_vec();
        bytes.push(0);
        self.extension(b'L', &bytes)
    }

    /// Appends an entry of any type with contents, as extensions of tar have.
    pub fn extension(self, flag: u8, contents: &[u8]) -> TarBuilder {
        self.raw_header(TarBuilder::header("extension", flag, contents.len() as u64))
            .contents(contents)
    }

    /// Appends a sparse file in the old format of GNU tar; `pieces` are offsets and lengths.
    pub fn old_gnu_sparse(
        self,
        name: &str,
        pieces: &[(u64, u64)],
        size: u64,
        contents: &[u8],
    ) -> TarBuilder {
        let mut header = TarBuilder::header(name, b'S', contents.len() as u64);
        header[257..265].copy_from_slice(b"ustar  \0");
        let fields = |pieces: &[(u64, u64)]| -> Vec<u8> {
            pieces
                .iter()
                .flat_map(|(offset, length)| format!("{offset:011o}\0{length:011o}\0").into_bytes())
                .collect()
        };
        let (first, mut rest) = pieces.split_at(pieces.len().min(4));
        let field = fields(first);
        header[386..386 + field.len()].copy_from_slice(&field);
        header[482] = u8::from(!rest.is_empty());
        header[483..495].copy_from_slice(format!("{size:011o}\0").as_bytes());
        let mut tar = self.raw_header(header);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(21));
            let mut block = fields(now);
            block.resize(512, 0);
            block[504] = u8::from(!later.is_empty());
            tar = tar.raw(&block);
            rest = later;
        }
        tar.contents(contents)
    }

    /// Returns the archive with its end.
    pub fn finish(self) -> Vec<u8> {
        self.raw(&[0; 1024]).bytes
    }

    /// Returns the archive without its end, as if it had been cut.
    pub fn finish_without_end(self) -> Vec<u8> {
        self.bytes
    }

    fn link(self, name: &str, flag: u8, target: &str) -> TarBuilder {
        let mut header = TarBuilder::header(name, flag, 0);
        header[157..157 + target.len()].copy_from_slice(target.as_bytes());
        self.raw_header(header)
    }

    fn contents(self, contents: &[u8]) -> TarBuilder {
        let padding = contents.len().next_multiple_of(512) - contents.len();
        self.raw(contents).raw(&vec![0; padding])
    }
}

fn sign(header: &mut [u8; 512]) {
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Creates a store in a temporary directory.
pub fn store() -> (tempfile::TempDir, libmsb::state::images::Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = libmsb::state::images::Store::at(directory.path().join("images"));
    store.prepare().unwrap();
    (directory, store)
}

/// Compresses with gzip.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Compresses with zstd.
pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}
