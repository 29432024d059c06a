//! Known memory.

use std::io::{self, Read, Write};

/// Bytes of a mebibyte.
const MEBIBYTE: usize = 1 << 20;

/// Takes so much memory, says so, and keeps it until standard input ends.
pub(crate) fn memory(mebibytes: &str) -> io::Result<()> {
    let count: usize = mebibytes.parse().map_err(io::Error::other)?;
    // Piece by piece, since a kernel refuses at once what it can never have; and no byte is zero,
    // since such a page would not be taken.
    let pieces: Vec<Vec<u8>> = (0..count).map(|_| vec![0xa5; MEBIBYTE]).collect();
    println!("held");
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    drop(std::hint::black_box(pieces));
    Ok(())
}
