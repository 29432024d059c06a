//! Streams of commands that go on in a guest from saved memory.

use super::jobs::JobInput;
use super::{InternalStream, Relay, StreamOwner};

/// The stream of a command that goes on without its client: a job, or the main command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OpenCommand {
    /// Number of the stream on the agent's connection.
    pub(crate) stream: u32,
    /// Number of the job; `None` for the main command that is not one.
    pub(crate) job: Option<u32>,
    /// It is the main command.
    pub(crate) main: bool,
    /// It has a terminal.
    pub(crate) tty: bool,
    /// ID under which the output is logged.
    pub(crate) session: Option<String>,
}

impl Relay {
    /// Returns the main command and the jobs that are running.
    pub(crate) fn open_commands(&self) -> Vec<OpenCommand> {
        let mut commands: Vec<OpenCommand> = self
            .routes
            .iter()
            .filter_map(|(stream, route)| {
                let job = match route.owner {
                    StreamOwner::Supervisor(InternalStream::Job(number)) => Some(number),
                    _ if route.main => None,
                    _ => return None,
                };
                let session = route.session.clone().filter(|_| job.is_some());
                let (stream, main, tty) = (*stream, route.main, route.tty);
                Some(OpenCommand { stream, job, main, tty, session })
            })
            .collect();
        commands.sort_by_key(|command| command.stream);
        commands
    }

    /// Returns the number of the next stream on the agent's connection.
    pub(crate) fn next_stream(&self) -> u32 {
        self.next_stream
    }

    /// Uses this number and later ones for new streams.
    pub(crate) fn set_next_stream(&mut self, number: u32) {
        self.next_stream = number;
    }

    /// Opens the stream of a command that runs in the guest already.
    pub(crate) fn adopt_open(&mut self, command: &OpenCommand) {
        let internal = command.job.map_or(InternalStream::Main, InternalStream::Job);
        self.next_stream = command.stream;
        let stream = self.route(StreamOwner::Supervisor(internal), command.main);
        if let Some(route) = self.routes.get_mut(&stream) {
            (route.tty, route.session) = (command.tty, command.session.clone());
        }
        if command.job.is_some() {
            self.inputs.insert(stream, JobInput::default());
        }
    }
}
