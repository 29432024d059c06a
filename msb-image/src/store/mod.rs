//! The image store: one module for each kind of access.
//!
//! Files appear in this order: layers, configuration, manifest, disk, reference. Each is synced
//! before the next appears, so a kill at any moment leaves nothing that refers to a missing file.
//! The names of new files start with `.new-`. A killed process leaves them behind; the next process
//! that adds an image removes them if no other process uses the store.

/// Images, documents and layers in the store.
pub(crate) mod find;
/// Garbage collection.
pub(crate) mod garbage;
/// New layers.
pub(crate) mod layers;
/// The live set: manifests, configurations and layers that references and sandboxes need.
pub(crate) mod live;
/// Locks of the store.
pub(crate) mod open;
/// Unused images and garbage: what `msb image prune` removes.
pub(crate) mod prune;
/// Additions.
pub(crate) mod put;
