//! ONNX Runtime: found or installed, loaded once, and asked to run graphs.
//!
//! * [`search`] looks for the library, [`install`] fetches a pinned one, and [`remove`] takes it away.
//! * [`Runtime`] is the loaded library. A process loads one library, once, and keeps it.
//! * [`Session`] is one model, ready to run on a [`Device`]; [`Tensor`] is what goes in and comes out.
//!
//! **Invariant:** what was asked for is what runs. A library named by the user, or a CUDA device, that cannot be used is
//! an error, never a fall-back to another one.

mod binding;
mod cuda;
mod error;
pub mod install;
mod library;
mod loaded;
mod memory;
mod pins;
mod pip;
mod placement;
mod places;
pub mod remove;
mod session;
mod tensor;
mod trust;
mod wheel;

pub use binding::{Binding, DeviceTensor, Kept, Measured};
pub use cuda::Cuda;
pub use error::{Error, Result};
pub use library::{Library, Look, Origin, Outcome, Search, Version, find, search};
pub use loaded::Runtime;
pub use memory::{Arena, HostMemory, Resident, available_memory};
pub use pins::Flavour;
pub use placement::Placed;
pub use places::Places;
pub use session::{Device, Dim, Optimisation, Port, Session, SessionBuilder};
pub use tensor::{ElementType, Tensor};
