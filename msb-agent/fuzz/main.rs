//! Fuzz targets of msb-agent: parsers of untrusted bytes. Any input is valid; a panic is a bug.

#![cfg_attr(fuzzing, no_main)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

use msb_agent::sftp::{SftpServer, needs_no_file, next_packet};

msb_test_fuzz::fuzz_targets! { "sftp" => sftp }

/// Splits the input into packets and checks that each answer is one well-formed packet. Only
/// requests that access no file are served; others would change the host of the test.
fn sftp(bytes: &[u8]) {
    let mut server = SftpServer::new(true);
    let (mut rest, mut out) = (bytes, Vec::new());
    while let Ok(Some(packet)) = next_packet(rest) {
        rest = &rest[4 + packet.len()..];
        if needs_no_file(packet) {
            server.answer(packet, &mut out);
            let answer = next_packet(&out);
            assert!(matches!(answer, Ok(Some(answer)) if 4 + answer.len() == out.len()));
        }
        out.clear();
    }
}
