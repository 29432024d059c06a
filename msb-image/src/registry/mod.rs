//! Registries: images over HTTP, as the distribution specification of OCI has it.
//!
//! What comes from a registry is trusted no more than an archive. Every document has a limit and every blob a digest
//! that is known before it is asked for; only the first manifest, when it is asked for by tag, is what the registry
//! says it is. Credentials go to the registry and to the token server that the registry itself names, over TLS. The target
//! of a redirect gets none and names no token server.

/// `WWW-Authenticate`, read.
pub(crate) mod challenge;
/// Requests to one registry: authentication, redirects, refusals.
pub(crate) mod client;
/// Connections: TLS, proxies, time limits.
pub(crate) mod connection;
/// Who one is at a registry: from the configuration, from Docker's, from credential helpers.
pub(crate) mod credentials;
/// Docker's `config.json`.
pub(crate) mod docker_config;
/// Blobs into files, in pieces if it must be, read while they grow.
pub(crate) mod download;
/// Programs that keep secrets: `docker-credential-…`.
pub(crate) mod helper;
/// Manifests and indexes.
pub(crate) mod manifest;
/// What a pull tells while it is going on.
pub(crate) mod progress;
/// Proxies from the environment.
pub(crate) mod proxy;
/// When to try again.
pub(crate) mod retry;
/// What `config.json` of the state directory says of registries.
pub(crate) mod settings;
/// Bearer tokens.
pub(crate) mod token;

/// Host name of Docker's registry in references.
pub(crate) const DOCKER_IO: &str = "docker.io";
/// Where it answers.
pub(crate) const DOCKER_IO_HOST: &str = "registry-1.docker.io";
