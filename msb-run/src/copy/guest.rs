//! The guest as a source and a sink of records.

use std::io::{self, Read, Write};
use std::sync::mpsc;

use anyhow::Context;
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use msb_wire::client::{CallReader, CallSender, ClientCall, ClientConnection, Incoming};
use msb_wire::exec::ExecEvent;
use msb_wire::file::FilesRequest;
use msb_wire::file::receive::CopyError;
use msb_wire::file::record::{Record, RecordReader, RecordWriter, Severity};
use msb_wire::frame::{STDIN, STDOUT};
use msb_wire::sandbox::Request;

use super::reporter::CopyReporter;

/// Starts a copy on the guest's side.
pub(super) fn open(
    connection: ClientConnection,
    request: FilesRequest,
) -> anyhow::Result<ClientCall> {
    Ok(connection.open(&Request::Files(request))?)
}

/// A reader of the bytes that the guest sends. It ends with the call.
pub(super) struct GuestOutput {
    reader: CallReader,
    sender: CallSender,
    bytes: Vec<u8>,
    taken: usize,
    ended: bool,
}

impl GuestOutput {
    pub(super) fn new(reader: CallReader, sender: CallSender) -> GuestOutput {
        GuestOutput { reader, sender, bytes: Vec::new(), taken: 0, ended: false }
    }

    /// Waits for more bytes. Grants credit back when the next bytes are needed, as the earlier ones
    /// are used up then.
    fn wait(&mut self) -> io::Result<()> {
        if !self.bytes.is_empty() {
            self.sender.used(STDOUT, self.bytes.len())?;
            self.bytes.clear();
            self.taken = 0;
        }
        match self.reader.receive()? {
            Some(Incoming::Data { channel: STDOUT, bytes, .. }) => self.bytes = bytes,
            Some(Incoming::Data { .. }) => {}
            Some(Incoming::Event { message, last }) => self.event(&message, last)?,
            None => self.ended = true,
        }
        Ok(())
    }

    fn event(&mut self, message: &[u8], last: bool) -> io::Result<()> {
        self.ended = last;
        match serde_json::from_slice(message) {
            Ok(ExecEvent::Failed { message, .. }) => {
                Err(io::Error::other(format!("in the guest: {}", escape(&message))))
            }
            _ => Ok(()),
        }
    }
}

impl Read for GuestOutput {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.bytes.len() && !self.ended {
            self.wait()?;
        }
        let rest = &self.bytes[self.taken..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.taken += count;
        Ok(count)
    }
}

/// A writer of bytes to the guest.
pub(super) struct GuestInput(CallSender);

impl Write for GuestInput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.data(STDIN, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lets `fill` write records to the guest, and reports the guest's messages meanwhile. Returns
/// whether everything arrived.
pub(super) fn send_records(
    call: ClientCall,
    report: CopyReporter<'_>,
    fill: impl FnOnce(&mut RecordWriter<GuestInput>, CopyReporter<'_>) -> anyhow::Result<bool>,
) -> anyhow::Result<bool> {
    let (sender, hang_up) = (call.sender.clone(), call.sender.clone());
    let answers = RecordReader::for_replies(GuestOutput::new(call.reader, call.sender));
    let (messages, received) = mpsc::channel();
    std::thread::scope(|scope| {
        let reader = std::thread::Builder::new()
            .name("answers".to_owned())
            .spawn_scoped(scope, move || read_answers(answers, &messages))
            .context("cannot start a thread")?;
        let mut out = RecordWriter::new(GuestInput(sender.clone()));
        let filled = fill(&mut out, report);
        // After an error hang up; otherwise the guest would wait for more records.
        let ended = filled.as_ref().map(|_| sender.end(STDIN));
        if filled.as_ref().is_err_and(|error| !is_broken_pipe(error)) {
            hang_up.hang_up();
        }
        drop(ended);
        let mut complete = true;
        for (severity, text) in received {
            complete &= severity != Severity::Error;
            report(severity, &text);
        }
        let answered =
            reader.join().map_err(|_| Failure::failed("the copy's reader thread panicked"))?;
        match (filled, answered) {
            // When the guest refuses the data, its answer has the reason.
            (Err(error), Err(why)) if is_broken_pipe(&error) => Err(why.into()),
            (Err(error), _) => Err(error),
            (Ok(_), Err(why)) => Err(why.into()),
            (Ok(filled), Ok(())) => Ok(filled && complete),
        }
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Reads the guest's answers until the last one.
fn read_answers(
    mut answers: RecordReader<GuestOutput>,
    messages: &mpsc::Sender<(Severity, String)>,
) -> Result<(), CopyError> {
    loop {
        match answers.next_record()? {
            Record::Done => return Ok(()),
            Record::Failed(why) => return Err(CopyError::new(format!("in the guest: {why}"))),
            Record::Problem(severity, text) => {
                // The receiver exists until this thread has ended.
                let _ = messages.send((severity, text));
            }
            _ => {}
        }
    }
}
