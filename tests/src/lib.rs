//! What integration tests stand on: a throw-away host, the pods in it, frames, and programs of others.
//!
//! Tests panic; they do not return errors, which would have no place in the code.
#![expect(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "everything in a test panics when it fails"
)]

pub mod behind;
pub mod fingerprint;
pub mod foreign;
pub mod forged;
pub mod frame;
pub mod fuzz;
pub mod generate;
pub mod hook;
pub mod lab;
pub mod need;
pub mod nft;
pub mod packet;
pub mod pair;
pub mod planted;
mod random;
pub mod soak;
pub mod topology;
pub mod traffic;
pub mod variant;

pub use lab::{Finished, Lab, Running};
pub use pair::Pair;
pub use random::Random;
