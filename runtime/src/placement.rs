//! Which nodes of a session run on the CPU although it was opened on a device.

use std::ffi::{CStr, c_char};
use std::ptr;

use ort::AsPointer as _;
use ort::ep::ExecutionProvider as _;

use super::error::{Error, Result};
use super::session::{Device, Session};

/// Makes a session record which provider takes each node.
pub(super) const RECORD: &str = "session.record_ep_graph_assignment_info";

/// A node, as ONNX Runtime handed it to a provider: after its first optimisations, by the model's name for it or one of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    pub name: String,
    pub operator: String,
}

impl Session {
    /// The nodes that the CPU runs in a session on a device, in the order of the graph; none for a session on the CPU.
    ///
    /// # Errors
    /// A library that does not report it.
    pub fn left_to_cpu(&self) -> Result<Vec<Placed>> {
        if self.device == Device::Cpu {
            return Ok(Vec::new());
        }
        let api = ort::api();
        let mut placed = Vec::new();
        // SAFETY: the calls follow the C API. Their results belong to the session, and are copied before it ends.
        unsafe {
            let check = |status| ort::Error::result_from_status(status).map_err(Error::run);
            let text = |text: *const c_char| match text.is_null() {
                true => String::new(),
                false => CStr::from_ptr(text).to_string_lossy().into_owned(),
            };
            let (mut parts, mut count) = (ptr::null(), 0);
            check((api.Session_GetEpGraphAssignmentInfo)(self.session.ptr(), &mut parts, &mut count))?;
            for &part in list(parts, count) {
                let mut provider = ptr::null();
                check((api.EpAssignedSubgraph_GetEpName)(part, &mut provider))?;
                if text(provider) != ort::ep::CPU::NAME {
                    continue;
                }
                let (mut nodes, mut count) = (ptr::null(), 0);
                check((api.EpAssignedSubgraph_GetNodes)(part, &mut nodes, &mut count))?;
                for &node in list(nodes, count) {
                    let (mut name, mut operator) = (ptr::null(), ptr::null());
                    check((api.EpAssignedNode_GetName)(node, &mut name))?;
                    check((api.EpAssignedNode_GetOperatorType)(node, &mut operator))?;
                    placed.push(Placed { name: text(name), operator: text(operator) });
                }
            }
        }
        Ok(placed)
    }
}

/// # Safety
/// `first` points at `count` elements, or is null.
unsafe fn list<'l, T>(first: *const T, count: usize) -> &'l [T] {
    // SAFETY: guaranteed by the caller.
    if first.is_null() { &[] } else { unsafe { std::slice::from_raw_parts(first, count) } }
}
