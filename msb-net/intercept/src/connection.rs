//! One intercepted connection.
//!
//! The guest's ClientHello is read, then TLS to the server is connected with the same ALPN
//! protocols, and the guest is answered with the one that the server chose. So both sides speak the
//! same version of HTTP. If the server cannot be verified, the guest's handshake is completed all the
//! same, and its requests are answered with the reason.

use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::{Arc, Mutex};

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use libmsb::net::name::HostName;
use rustls::server::Acceptor;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::StartHandshake;
use tokio_rustls::client;
use tokio_rustls::server::TlsStream;

use crate::answer::Refusal;
use crate::body::{Body, BodyError};
use crate::event_log::LogEvent;
use crate::exchange::{Exchange, ServerSender};
use crate::handover::Connection;
use crate::interceptor::Interceptor;
use crate::limits::{
    HANDSHAKE_TIMEOUT, HEAD_BYTES_MAX, HEAD_TIMEOUT, HEADERS_MAX, HELLO_TIMEOUT, STREAMS_MAX,
};

/// ALPN protocols that are intercepted.
const H2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Serves a connection to its end.
pub(crate) async fn serve(interceptor: Arc<Interceptor>, connection: Connection) {
    let facts = connection.facts.clone();
    if let Err((what, error)) = intercept(&interceptor, connection).await {
        let (id, host) = (facts.id, facts.sni.as_str());
        interceptor.log.log(&LogEvent::Tls { id, host, what, error });
    }
}

/// A connection that ended before HTTP: what failed, and why.
type Failed = (&'static str, String);

async fn intercept(interceptor: &Arc<Interceptor>, connection: Connection) -> Result<(), Failed> {
    let Connection { facts, server, guest } = connection;
    let (server, guest) = sockets(server, guest).map_err(|error| ("socket", error.to_string()))?;
    let accept = LazyConfigAcceptor::new(Acceptor::default(), guest);
    let hello = match timeout(HELLO_TIMEOUT, accept).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(error)) => return Err(("hello", error.to_string())),
        Err(_) => return Err(("hello", "timeout".to_owned())),
    };
    // msb-net has judged this name; another parser must find the same.
    let named = hello.client_hello().server_name().map(str::parse::<HostName>);
    if !named.is_some_and(|named| named.is_ok_and(|named| named == facts.sni)) {
        return Err(("hello", "the server name is not the one that was judged".to_owned()));
    }
    let offered: Option<Vec<Vec<u8>>> =
        hello.client_hello().alpn().map(|protocols| protocols.map(<[u8]>::to_vec).collect());
    let protocols: Vec<Vec<u8>> = offered.iter().flatten().filter(is_http).cloned().collect();
    if offered.is_some() && protocols.is_empty() {
        // The handshake fails with the alert no_application_protocol.
        let _ = accept_guest(interceptor, hello, &facts.sni, Some(HTTP1)).await;
        let error = "the guest offers no version of HTTP; --tls-bypass HOST exempts the host";
        return Err(("protocol", error.to_owned()));
    }
    match interceptor.upstream.connect(server, &facts.sni, &protocols).await {
        Ok(upstream) => {
            let protocol = upstream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
            let guest = accept_guest(interceptor, hello, &facts.sni, protocol.as_deref()).await?;
            let standings = interceptor.secrets.standings(&facts.sni, facts.pinned).into();
            let exchange = |sender| Exchange {
                interceptor: interceptor.clone(),
                id: facts.id,
                host: facts.sni.clone(),
                port: facts.remote.port(),
                standings,
                used: Arc::new(Mutex::new(vec![false; interceptor.secrets.len()])),
                sender,
            };
            match protocol.as_deref() {
                Some(H2) => serve_http2(guest, upstream, exchange).await,
                _ => serve_http1(guest, upstream, exchange).await,
            }
            .map_err(|error| ("http", error.to_string()))
        }
        Err(failure) => {
            let (id, host) = (facts.id, facts.sni.as_str());
            let error = failure.0.clone();
            interceptor.log.log(&LogEvent::Tls { id, host, what: "server", error });
            let protocol = protocols.first().cloned();
            let guest = accept_guest(interceptor, hello, &facts.sni, protocol.as_deref()).await?;
            let text = format!("{host}: {}", failure.0);
            let refusal = Refusal::new(StatusCode::BAD_GATEWAY, text);
            refuse_all(guest, protocol.as_deref() == Some(H2), refusal).await;
            Ok(())
        }
    }
}

fn is_http(protocol: &&Vec<u8>) -> bool {
    [H2, HTTP1].contains(&&protocol[..])
}

fn sockets(server: OwnedFd, guest: OwnedFd) -> std::io::Result<(TcpStream, UnixStream)> {
    let server = std::net::TcpStream::from(server);
    server.set_nonblocking(true)?;
    let guest = std::os::unix::net::UnixStream::from(guest);
    guest.set_nonblocking(true)?;
    Ok((TcpStream::from_std(server)?, UnixStream::from_std(guest)?))
}

/// Completes the handshake with the guest.
async fn accept_guest(
    interceptor: &Interceptor,
    hello: StartHandshake<UnixStream>,
    name: &HostName,
    protocol: Option<&[u8]>,
) -> Result<TlsStream<UnixStream>, Failed> {
    let config = interceptor.authority.server(name, protocol);
    let config = config.map_err(|error| ("certificate", format!("{error:#}")))?;
    match timeout(HANDSHAKE_TIMEOUT, hello.into_stream(config)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(("guest", error.to_string())),
        Err(_) => Err(("guest", "timeout".to_owned())),
    }
}

async fn serve_http1(
    guest: TlsStream<UnixStream>,
    upstream: client::TlsStream<TcpStream>,
    exchange: impl FnOnce(ServerSender) -> Exchange,
) -> hyper::Result<()> {
    let (sender, server) = hyper::client::conn::http1::Builder::new()
        .preserve_header_case(true)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake::<_, Body>(TokioIo::new(upstream))
        .await?;
    let ended = Arc::new(Notify::new());
    let end = ended.clone();
    tokio::spawn(async move {
        let _ = server.with_upgrades().await;
        end.notify_one();
    });
    let exchange = Arc::new(exchange(ServerSender::Http1(tokio::sync::Mutex::new(sender))));
    let service = service_fn(move |request| exchange.clone().handle(request));
    let serving = hyper::server::conn::http1::Builder::new()
        .preserve_header_case(true)
        .half_close(true)
        .auto_date_header(false)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(guest), service)
        .with_upgrades();
    let mut serving = pin!(serving);
    tokio::select! {
        served = serving.as_mut() => return served,
        () = ended.notified() => serving.as_mut().graceful_shutdown(),
    }
    serving.await
}

async fn serve_http2(
    guest: TlsStream<UnixStream>,
    upstream: client::TlsStream<TcpStream>,
    exchange: impl FnOnce(ServerSender) -> Exchange,
) -> hyper::Result<()> {
    let (sender, server) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .adaptive_window(true)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .handshake::<_, Body>(TokioIo::new(upstream))
        .await?;
    let ended = Arc::new(Notify::new());
    let end = ended.clone();
    tokio::spawn(async move {
        let _ = server.await;
        end.notify_one();
    });
    let exchange = Arc::new(exchange(ServerSender::Http2(sender)));
    let service = service_fn(move |request| exchange.clone().handle(request));
    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .adaptive_window(true)
        .auto_date_header(false)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .serve_connection(TokioIo::new(guest), service);
    let mut serving = pin!(serving);
    tokio::select! {
        served = serving.as_mut() => return served,
        () = ended.notified() => serving.as_mut().graceful_shutdown(),
    }
    serving.await
}

/// Answers every request with a refusal.
async fn refuse_all(guest: TlsStream<UnixStream>, http2: bool, refusal: Refusal) {
    let service = service_fn(move |_: Request<Incoming>| {
        let response: Response<Body> = refusal.response();
        async { Ok::<_, BodyError>(response) }
    });
    let io = TokioIo::new(guest);
    // A guest that goes away before the answer needs none.
    let _ = if http2 {
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .serve_connection(io, service)
            .await
    } else {
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .keep_alive(false)
            .serve_connection(io, service)
            .await
    };
}
