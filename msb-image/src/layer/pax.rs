//! PAX extended headers: records `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use super::sparse::SparsePiece;
use super::tar::TarTime;
use crate::limits::XATTR_BYTES_MAX;

/// Fields of an entry that PAX records set; `None` if no record did.
#[derive(Clone, Debug, Default)]
pub(crate) struct PaxRecords {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) linkpath: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) mtime: Option<TarTime>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Bytes of the names and values in `xattrs`.
    xattr_bytes: usize,
    pub(crate) sparse: SparseRecords,
}

/// The records `GNU.sparse.*`, in all three formats that GNU tar has used.
#[derive(Clone, Debug, Default)]
pub(crate) struct SparseRecords {
    pub(crate) major: Option<u64>,
    pub(crate) minor: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) pieces: Option<Vec<SparsePiece>>,
    offset: Option<u64>,
}

impl PaxRecords {
    /// Adds the records of an extended header. The last record of a key wins.
    pub(crate) fn read(&mut self, mut header: &[u8]) -> Result<()> {
        while !header.is_empty() {
            let (record, rest) = split_record(header)?;
            let equals = record.iter().position(|byte| *byte == b'=');
            let equals = equals.context("a record of the extended header has no '='")?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            self.set(key, value)
                .with_context(|| format!("extended header '{}'", String::from_utf8_lossy(key)))?;
            header = rest;
        }
        Ok(())
    }

    /// Rejects a global header that changes contents or names: readers disagree about its meaning.
    pub(crate) fn check_global(&self) -> Result<()> {
        let structural = self.path.is_some()
            || self.linkpath.is_some()
            || self.size.is_some()
            || !self.xattrs.is_empty()
            || self.sparse.is_present();
        ensure!(!structural, "a global extended header sets a path, a size or attributes of files");
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            return self.set_xattr(name, value);
        }
        if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
            return self.sparse.set(name, value);
        }
        // POSIX: an empty value deletes the earlier one.
        match key {
            b"path" => self.path = present(value).map(text).transpose()?,
            b"linkpath" => self.linkpath = present(value).map(text).transpose()?,
            b"size" => self.size = present(value).map(number).transpose()?,
            b"uid" => self.uid = present(value).map(id).transpose()?,
            b"gid" => self.gid = present(value).map(id).transpose()?,
            b"mtime" => self.mtime = present(value).map(time).transpose()?,
            _ => {}
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        ensure!(!name.is_empty() && !name.contains(&0), "the name of the attribute is not valid");
        self.xattr_bytes += name.len() + value.len();
        if let Some(before) = self.xattrs.insert(name.to_vec(), value.to_vec()) {
            self.xattr_bytes -= name.len() + before.len();
        }
        ensure!(
            self.xattr_bytes <= XATTR_BYTES_MAX,
            "more than {XATTR_BYTES_MAX} bytes of extended attributes"
        );
        Ok(())
    }
}

impl SparseRecords {
    /// Returns whether the entry is a sparse file in one of the PAX formats.
    pub(crate) fn is_present(&self) -> bool {
        self.major.is_some() || self.pieces.is_some() || self.size.is_some() || self.name.is_some()
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match key {
            b"major" => self.major = Some(number(value)?),
            b"minor" => self.minor = Some(number(value)?),
            b"name" => self.name = Some(text(value)?),
            b"size" | b"realsize" => self.size = Some(number(value)?),
            b"map" => self.pieces = Some(map(value)?),
            b"numblocks" => self.pieces = self.pieces.take().or(Some(Vec::new())),
            b"offset" => {
                ensure!(self.offset.is_none(), "two offsets without a length between them");
                self.offset = Some(number(value)?);
            }
            b"numbytes" => {
                let offset = self.offset.take().context("a length without an offset")?;
                let length = number(value)?;
                self.pieces.get_or_insert_default().push(SparsePiece { offset, length });
            }
            _ => bail!("unknown record of a sparse file"),
        }
        Ok(())
    }
}

/// Splits off the first record.
fn split_record(header: &[u8]) -> Result<(&[u8], &[u8])> {
    let space = header.iter().take(20).position(|byte| *byte == b' ');
    let space = space.context("a record of the extended header has no length")?;
    let length = usize::try_from(number(&header[..space])?)?;
    ensure!(
        length > space + 1 && length <= header.len(),
        "a record of the extended header has a wrong length"
    );
    let (record, rest) = header.split_at(length);
    ensure!(
        record.last() == Some(&b'\n'),
        "a record of the extended header does not end at its length"
    );
    Ok((&record[space + 1..length - 1], rest))
}

fn present(value: &[u8]) -> Option<&[u8]> {
    (!value.is_empty()).then_some(value)
}

fn text(value: &[u8]) -> Result<Vec<u8>> {
    ensure!(!value.contains(&0), "the value contains a NUL byte");
    Ok(value.to_vec())
}

/// Parses a decimal number without sign or spaces.
pub(crate) fn number(digits: &[u8]) -> Result<u64> {
    ensure!(!digits.is_empty() && digits.iter().all(u8::is_ascii_digit), "not a decimal number");
    let number = std::str::from_utf8(digits)?.parse::<i64>().context("number too large")?;
    Ok(number.unsigned_abs())
}

fn id(value: &[u8]) -> Result<u32> {
    u32::try_from(number(value)?).context("the owner ID does not fit into 32 bits")
}

fn map(value: &[u8]) -> Result<Vec<SparsePiece>> {
    if value.is_empty() {
        return Ok(Vec::new());
    }
    let numbers: Vec<u64> = value.split(|byte| *byte == b',').map(number).collect::<Result<_>>()?;
    ensure!(numbers.len().is_multiple_of(2), "a sparse map with an odd number of values");
    Ok(numbers
        .chunks_exact(2)
        .map(|pair| SparsePiece { offset: pair[0], length: pair[1] })
        .collect())
}

/// Parses seconds since 1970 with any number of decimals. Digits below nanoseconds are dropped.
fn time(value: &[u8]) -> Result<TarTime> {
    let (negative, digits) =
        value.strip_prefix(b"-").map_or((false, value), |digits| (true, digits));
    let point = digits.iter().position(|byte| *byte == b'.').unwrap_or(digits.len());
    let seconds = i64::try_from(number(&digits[..point])?)?;
    let fraction = digits.get(point + 1..).unwrap_or_default();
    ensure!(fraction.iter().all(u8::is_ascii_digit), "not a time");
    let digit = |at: usize| u32::from(fraction.get(at).map_or(0, |digit| digit - b'0'));
    let nanos = (0..9).fold(0, |sum, at| sum * 10 + digit(at));
    Ok(match (negative, nanos) {
        (false, nanos) => TarTime { seconds, nanos },
        (true, 0) => TarTime { seconds: -seconds, nanos },
        (true, nanos) => TarTime { seconds: -seconds - 1, nanos: 1_000_000_000 - nanos },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        crate::testing::pax_record(key, value)
    }

    fn read(header: &[u8]) -> Result<PaxRecords> {
        let mut attributes = PaxRecords::default();
        attributes.read(header)?;
        Ok(attributes)
    }

    #[test]
    fn records_of_any_length_are_cut_where_they_say() {
        let long = vec![b'x'; 995];
        let header =
            [record("path", &long), record("mtime", b"12.5"), record("uid", b"4294967295")]
                .concat();
        let attributes = read(&header).unwrap();
        assert_eq!(attributes.path.unwrap(), long);
        assert_eq!(attributes.mtime.unwrap(), TarTime { seconds: 12, nanos: 500_000_000 });
        assert_eq!(attributes.uid, Some(u32::MAX));
    }

    #[test]
    fn values_may_hold_any_byte_and_the_last_record_counts() {
        let header = [
            record("SCHILY.xattr.user.a", b"1\n=\0"),
            record("path", b"one"),
            record("path", b"two"),
        ]
        .concat();
        let attributes = read(&header).unwrap();
        assert_eq!(attributes.xattrs, [(b"user.a".to_vec(), b"1\n=\0".to_vec())].into());
        assert_eq!(attributes.path.unwrap(), b"two");
        assert!(
            read(&[record("path", b"one"), record("path", b"")].concat()).unwrap().path.is_none()
        );
    }

    #[test]
    fn times_before_1970_and_finer_than_nanoseconds_are_read() {
        let parsed = |value: &[u8]| read(&record("mtime", value)).unwrap().mtime.unwrap();
        assert_eq!(parsed(b"-1.5"), TarTime { seconds: -2, nanos: 500_000_000 });
        assert_eq!(parsed(b"-3"), TarTime { seconds: -3, nanos: 0 });
        assert_eq!(parsed(b"1.0000000019"), TarTime { seconds: 1, nanos: 1 });
    }

    #[test]
    fn broken_records_are_refused() {
        for header in [
            &b"12 path=abc"[..],
            b"x path=a\n",
            b"-5 path\n",
            b"6 a=\n",
            b"9 path=a",
            b"3 \n",
            b"999999999999999999999 a=b\n",
            b"8 path\n\n",
            b"12 size=-12\n",
            b"14 size=+0x12\n\n",
        ] {
            assert!(read(header).is_err(), "{}", String::from_utf8_lossy(header));
        }
        assert!(read(&record("uid", b"4294967296")).is_err());
        assert!(read(&record("size", b"9223372036854775808")).is_err());
        assert!(read(&record("path", b"a\0b")).is_err());
        assert!(read(&record("GNU.sparse.map", b"1,2,3")).is_err());
    }

    #[test]
    fn extended_attributes_have_a_limit() {
        let value = vec![b'x'; XATTR_BYTES_MAX - 6];
        assert!(read(&record("SCHILY.xattr.user.a", &value)).is_ok());
        let two =
            [record("SCHILY.xattr.user.a", &value), record("SCHILY.xattr.user.b", b"")].concat();
        assert!(read(&two).is_err());
        // A key that is set again counts once.
        let again = [
            record("SCHILY.xattr.user.a", &value),
            record("SCHILY.xattr.user.a", b"x"),
            record("SCHILY.xattr.user.b", b"x"),
        ]
        .concat();
        assert!(read(&again).is_ok());
    }

    #[test]
    fn a_global_header_may_set_times_but_not_paths() {
        assert!(read(&record("mtime", b"1")).unwrap().check_global().is_ok());
        assert!(read(&record("comment", b"git")).unwrap().check_global().is_ok());
        assert!(read(&record("path", b"x")).unwrap().check_global().is_err());
        assert!(read(&record("size", b"1")).unwrap().check_global().is_err());
    }
}
