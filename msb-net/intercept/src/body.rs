//! Bodies of requests, searched for placeholders, and of responses, searched for values.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;

use crate::search::StreamSearch;
use crate::secrets::{SecretTable, Standing, Violation};

/// Error of a body.
#[derive(Debug)]
pub(crate) enum BodyError {
    /// HTTP failed.
    Http(hyper::Error),
    /// The body was cut, for this reason.
    Cut(&'static str),
    /// The body could not be read.
    Unreadable(String),
}

impl From<hyper::Error> for BodyError {
    fn from(error: hyper::Error) -> BodyError {
        BodyError::Http(error)
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BodyError::Http(error) => error.fmt(f),
            BodyError::Cut(why) => f.write_str(why),
            BodyError::Unreadable(why) => f.write_str(why),
        }
    }
}

impl Error for BodyError {}

/// Any body.
pub(crate) type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Violation in a body that is being sent.
pub(crate) type SharedViolation = Arc<Mutex<Option<Violation>>>;

/// A request's body that is searched for placeholders. It ends with an error at a violation, so that
/// the server never gets a complete request.
pub(crate) struct WatchedRequest {
    pub(crate) body: Incoming,
    pub(crate) table: Arc<SecretTable>,
    pub(crate) standings: Arc<[Standing]>,
    pub(crate) search: StreamSearch,
    pub(crate) violation: SharedViolation,
    /// Called with the violation.
    pub(crate) report: Box<dyn Fn(&Violation) + Send>,
}

impl WatchedRequest {
    fn check(&self, tags: Vec<crate::secrets::PlaceholderTag>) -> Result<(), BodyError> {
        let found = tags.into_iter().filter_map(|tag| self.table.violation(tag, &self.standings));
        match found.max_by_key(|violation| violation.action) {
            None => Ok(()),
            Some(violation) => {
                (self.report)(&violation);
                *self.violation.lock().unwrap_or_else(PoisonError::into_inner) = Some(violation);
                Err(BodyError::Cut("a placeholder was sent to another host"))
            }
        }
    }

    fn check_trailers(&self, trailers: &hyper::HeaderMap) -> Result<(), BodyError> {
        for value in trailers.values() {
            let tags = self.table.placeholders().find(value.as_bytes());
            self.check(tags.map(|found| found.tag).collect())?;
        }
        Ok(())
    }
}

impl http_body::Body for WatchedRequest {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = match std::task::ready!(Pin::new(&mut this.body).poll_frame(context)) {
            None => {
                let tags = this.search.finish(this.table.placeholders());
                return Poll::Ready(this.check(tags).err().map(Err));
            }
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            Some(Ok(frame)) => frame,
        };
        let checked = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => {
                let mut tags = this.search.push(this.table.placeholders(), data, false);
                if this.body.is_end_stream() {
                    tags.extend(this.search.finish(this.table.placeholders()));
                }
                this.check(tags)
            }
            (None, Some(trailers)) => this.check_trailers(trailers),
            (None, None) => Ok(()),
        };
        Poll::Ready(Some(checked.map(|()| frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Secrets whose values were sent on a connection.
pub(crate) type UsedSecrets = Arc<Mutex<Vec<bool>>>;

/// A response's body that is searched for values. It ends with an error before the last byte of a
/// value.
pub(crate) struct WatchedResponse {
    pub(crate) body: Incoming,
    pub(crate) table: Arc<SecretTable>,
    pub(crate) used: UsedSecrets,
    pub(crate) search: StreamSearch,
    /// Called with the secret whose value was found.
    pub(crate) report: Box<dyn Fn(usize) + Send>,
}

impl http_body::Body for WatchedResponse {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = match std::task::ready!(Pin::new(&mut this.body).poll_frame(context)) {
            None => return Poll::Ready(None),
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            Some(Ok(frame)) => frame,
        };
        let used = this.used.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_sent = |tag: &usize| used[*tag];
        let echo = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => {
                this.search.push(this.table.values(), data, true).into_iter().find(is_sent)
            }
            (None, Some(trailers)) => trailers.values().find_map(|value| {
                let mut found = this.table.values().find(value.as_bytes());
                found.find(|found| is_sent(&found.tag)).map(|found| found.tag)
            }),
            (None, None) => None,
        };
        match echo {
            None => Poll::Ready(Some(Ok(frame))),
            Some(secret) => {
                (this.report)(secret);
                Poll::Ready(Some(Err(BodyError::Cut("the answer contains the value of a secret"))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
