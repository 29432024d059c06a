//! Registry client: the distribution specification of OCI over HTTP.
//!
//! Input from a registry is no more trusted than an archive. Every document has a size limit, and
//! every blob a digest that is known before the request; only a manifest requested by tag is what
//! the registry says it is. Credentials are sent over TLS to the registry and to the token server
//! that the registry itself names. The target of a redirect gets none and cannot name a token
//! server.

/// Authentication challenges: `WWW-Authenticate`.
pub(crate) mod challenge;
/// Requests to one registry: authentication, redirects and errors.
pub(crate) mod client;
/// Connections: TLS, proxies and timeouts.
pub(crate) mod connection;
/// Credentials from the configuration, from Docker's configuration and from credential helpers.
pub(crate) mod credentials;
/// Docker's `config.json`.
pub(crate) mod docker_config;
/// Downloads of blobs, resumed after interruptions and read while they grow.
pub(crate) mod download;
/// Credential helpers: `docker-credential-…`.
pub(crate) mod helper;
/// Manifests and indexes.
pub(crate) mod manifest;
/// Progress of a pull.
pub(crate) mod progress;
/// Proxies from the environment.
pub(crate) mod proxy;
/// Retries with exponential backoff.
pub(crate) mod retry;
/// Registry settings in `config.json` of the state directory.
pub(crate) mod settings;
/// Bearer tokens.
pub(crate) mod token;
/// URLs from a registry: percent-encoding and relative references.
pub(crate) mod url;
/// Warnings of a registry: `Warning`.
pub(crate) mod warnings;

/// Host name of Docker's registry in references.
pub(crate) const DOCKER_IO: &str = "docker.io";
/// Host that serves it.
pub(crate) const DOCKER_IO_HOST: &str = "registry-1.docker.io";
