//! Maps of sparse files: the pieces of a file that the archive holds, in order; the rest is zeros.

use anyhow::{Context, Result, ensure};

use super::pax;
use super::tar::{RawSource, TarReader};
use crate::limits::SPARSE_PIECES_MAX;

/// A piece of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SparsePiece {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// Checks a map: ascending, without overlap, within the file, and as long as the contents in the
/// archive. Returns it without empty pieces.
pub(crate) fn check(pieces: Vec<SparsePiece>, size: u64, stored: u64) -> Result<Vec<SparsePiece>> {
    ensure!(
        pieces.len() <= SPARSE_PIECES_MAX,
        "the sparse file has more than {SPARSE_PIECES_MAX} pieces"
    );
    let (mut end, mut sum) = (0, 0);
    for piece in &pieces {
        ensure!(piece.offset >= end, "the pieces of the sparse file overlap");
        end = piece
            .offset
            .checked_add(piece.length)
            .context("a piece of the sparse file is too long")?;
        ensure!(end <= size, "a piece of the sparse file lies beyond its end");
        sum += piece.length;
    }
    ensure!(
        sum == stored,
        "the pieces of the sparse file have {sum} bytes and the archive holds {stored}"
    );
    Ok(pieces.into_iter().filter(|piece| piece.length > 0).collect())
}

/// Reads the map of the old GNU format: four pieces in the header, then blocks of 21.
pub(crate) fn read_old_gnu<R: RawSource>(
    tar: &mut TarReader<R>,
    header: &[u8; 512],
) -> Result<(Vec<SparsePiece>, u64)> {
    let mut pieces = Vec::new();
    read_fields(&header[386..482], &mut pieces)?;
    let size = TarReader::<R>::unsigned(&header[483..495]).context("size of the sparse file")?;
    let mut more = header[482] != 0;
    while more {
        let block = tar.require_block("the map of a sparse file")?;
        read_fields(&block[..504], &mut pieces)?;
        ensure!(
            pieces.len() <= SPARSE_PIECES_MAX,
            "the sparse file has more than {SPARSE_PIECES_MAX} pieces"
        );
        more = block[504] != 0;
    }
    Ok((pieces, size))
}

fn read_fields(fields: &[u8], pieces: &mut Vec<SparsePiece>) -> Result<()> {
    for field in fields.chunks_exact(24) {
        if field[0] == 0 {
            break;
        }
        let offset =
            TarReader::<&[u8]>::unsigned(&field[..12]).context("offset in a sparse file")?;
        let length =
            TarReader::<&[u8]>::unsigned(&field[12..]).context("length in a sparse file")?;
        pieces.push(SparsePiece { offset, length });
    }
    Ok(())
}

/// Reads the map of PAX format 1.0: decimal numbers, one per line, before the contents and padded
/// to a block. Returns the map and its size in bytes.
pub(crate) fn read_map_1_0<R: RawSource>(
    tar: &mut TarReader<R>,
    stored: u64,
) -> Result<(Vec<SparsePiece>, u64)> {
    let mut text = MapReader { block: [0; 512], at: 512, taken: 0, stored };
    let count = text.number(tar)?;
    ensure!(
        count <= SPARSE_PIECES_MAX as u64,
        "the sparse file has more than {SPARSE_PIECES_MAX} pieces"
    );
    let mut pieces = Vec::new();
    for _ in 0..count {
        pieces.push(SparsePiece { offset: text.number(tar)?, length: text.number(tar)? });
    }
    Ok((pieces, text.taken))
}

struct MapReader {
    block: [u8; 512],
    at: usize,
    taken: u64,
    stored: u64,
}

impl MapReader {
    fn number<R: RawSource>(&mut self, tar: &mut TarReader<R>) -> Result<u64> {
        let mut digits = Vec::new();
        loop {
            match self.byte(tar)? {
                b'\n' => return pax::number(&digits).context("map of a sparse file"),
                digit => digits.push(digit),
            }
            ensure!(digits.len() <= 20, "a number in the map of a sparse file is too long");
        }
    }

    fn byte<R: RawSource>(&mut self, tar: &mut TarReader<R>) -> Result<u8> {
        if self.at == self.block.len() {
            self.taken += 512;
            ensure!(self.taken <= self.stored, "the map of a sparse file is longer than the file");
            self.block = tar.require_block("the map of a sparse file")?;
            self.at = 0;
        }
        self.at += 1;
        Ok(self.block[self.at - 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(pairs: &[(u64, u64)]) -> Vec<SparsePiece> {
        pairs
            .iter()
            .map(|(offset, length)| SparsePiece { offset: *offset, length: *length })
            .collect()
    }

    #[test]
    fn a_good_map_loses_only_its_empty_pieces() {
        assert_eq!(
            check(pieces(&[(0, 5), (10, 5), (20, 0)]), 20, 10).unwrap(),
            pieces(&[(0, 5), (10, 5)])
        );
    }

    #[test]
    fn a_map_that_contradicts_itself_is_refused() {
        assert!(check(pieces(&[(10, 5), (0, 5)]), 20, 10).is_err());
        assert!(check(pieces(&[(0, 5), (4, 5)]), 20, 10).is_err());
        assert!(check(pieces(&[(0, 5), (18, 5)]), 20, 10).is_err());
        assert!(check(pieces(&[(0, 5)]), 20, 10).is_err());
        assert!(check(pieces(&[(u64::MAX, 5)]), u64::MAX, 5).is_err());
        assert!(check(pieces(&vec![(0, 0); SPARSE_PIECES_MAX + 1]), 0, 0).is_err());
    }
}
