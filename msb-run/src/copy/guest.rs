//! A guest as a source and a sink of records.

use std::io::{self, Read, Write};
use std::sync::mpsc;

use anyhow::Context;
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use msb_wire::client::{Call, Connection, Incoming, Reader, Sender};
use msb_wire::exec::ExecEvent;
use msb_wire::file::FilesRequest;
use msb_wire::file::receive::CopyError;
use msb_wire::file::record::{Record, RecordReader, RecordWriter, Severity};
use msb_wire::frame::{STDIN, STDOUT};
use msb_wire::sandbox::Request;

use super::Report;

/// Begins a copy on the guest's side.
pub(super) fn open(connection: Connection, request: FilesRequest) -> anyhow::Result<Call> {
    Ok(connection.open(&Request::Files(request))?)
}

/// What comes from the guest, as bytes. It ends with the call.
pub(super) struct GuestOutput {
    reader: Reader,
    sender: Sender,
    bytes: Vec<u8>,
    taken: usize,
    over: bool,
}

impl GuestOutput {
    pub(super) fn new(reader: Reader, sender: Sender) -> GuestOutput {
        GuestOutput {
            reader,
            sender,
            bytes: Vec::new(),
            taken: 0,
            over: false,
        }
    }

    /// Waits for more. Bytes are granted back when the next ones are wanted: they are used up then.
    fn wait(&mut self) -> io::Result<()> {
        if !self.bytes.is_empty() {
            self.sender.used(STDOUT, self.bytes.len())?;
            self.bytes.clear();
            self.taken = 0;
        }
        match self.reader.receive()? {
            Some(Incoming::Data {
                channel: STDOUT,
                bytes,
                ..
            }) => self.bytes = bytes,
            Some(Incoming::Data { .. }) => {}
            Some(Incoming::Event { message, last }) => self.event(&message, last)?,
            None => self.over = true,
        }
        Ok(())
    }

    fn event(&mut self, message: &[u8], last: bool) -> io::Result<()> {
        self.over = last;
        match serde_json::from_slice(message) {
            Ok(ExecEvent::Failed { message, .. }) => Err(io::Error::other(format!(
                "in the guest: {}",
                escape(&message)
            ))),
            _ => Ok(()),
        }
    }
}

impl Read for GuestOutput {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.bytes.len() && !self.over {
            self.wait()?;
        }
        let rest = &self.bytes[self.taken..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.taken += count;
        Ok(count)
    }
}

/// Bytes to the guest.
pub(super) struct GuestInput(Sender);

impl Write for GuestInput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.data(STDIN, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lets `fill` write records to the guest, while what the guest remarks is told. Gives whether all of it arrived.
pub(super) fn give(
    call: Call,
    report: Report<'_>,
    fill: impl FnOnce(&mut RecordWriter<GuestInput>, Report<'_>) -> anyhow::Result<bool>,
) -> anyhow::Result<bool> {
    let (sender, hang_up) = (call.sender.clone(), call.sender.clone());
    let answers = RecordReader::of_answers(GuestOutput::new(call.reader, call.sender));
    let (remarks, heard) = mpsc::channel();
    std::thread::scope(|scope| {
        let listener = std::thread::Builder::new()
            .name("answers".to_owned())
            .spawn_scoped(scope, move || listen(answers, &remarks))
            .context("cannot start a thread")?;
        let mut out = RecordWriter::new(GuestInput(sender.clone()));
        let filled = fill(&mut out, report);
        // Without its end the guest would wait for more: whoever cannot go on breaks the copy off.
        let ended = filled.as_ref().map(|_| sender.end(STDIN));
        if filled.as_ref().is_err_and(|error| !is_broken_pipe(error)) {
            hang_up.hang_up();
        }
        drop(ended);
        let mut complete = true;
        for (severity, text) in heard {
            complete &= severity != Severity::Error;
            report(severity, &text);
        }
        let answered = listener
            .join()
            .map_err(|_| Failure::failed("the copy's thread died"))?;
        match (filled, answered) {
            // When the guest does not take it, it says why.
            (Err(error), Err(why)) if is_broken_pipe(&error) => Err(why.into()),
            (Err(error), _) => Err(error),
            (Ok(_), Err(why)) => Err(why.into()),
            (Ok(filled), Ok(())) => Ok(filled && complete),
        }
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Hears the guest to its end.
fn listen(
    mut answers: RecordReader<GuestOutput>,
    remarks: &mpsc::Sender<(Severity, String)>,
) -> Result<(), CopyError> {
    loop {
        match answers.next_record()? {
            Record::Done => return Ok(()),
            Record::Failed(why) => return Err(CopyError::new(format!("in the guest: {why}"))),
            Record::Problem(severity, text) => {
                // The other end is there until this thread has ended.
                let _ = remarks.send((severity, text));
            }
            _ => {}
        }
    }
}
