//! Long runs under load: what is lost, left or leaked when veth is killed, upgraded, or kept busy. Each prints its figures,
//! and says of each whether it is as good as promised. `docs/reliability.md` has the results.

mod churn;
mod flow;
mod follow;
mod host;
pub mod kernel;
mod kill;
mod load;
mod report;
mod stream;
mod upgrade;

pub use churn::{Churn, churn};
pub use follow::{Follow, follow};
pub use host::Sending;
pub use kill::{Kill, kill};
pub use load::{Load, load};
pub use report::{Figure, Report};
pub use upgrade::{Upgrade, upgrade};
