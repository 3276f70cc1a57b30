//! Optimizer steps of the side network on a device. Parameters and optimizer state stay there, and are updated in
//! place.

use anyhow::{Context, anyhow, bail};
use lstc_base::report::Hinted;
use lstc_data::Batch;
use lstc_graph::{Attribute, Builder, DType, Dim, Graph, Origin, Role, ValueId};
use lstc_passes::{COUNTED_ROWS, Parts, written_in_place};
use lstc_runtime::{
    self, Arena, Binding, Device, DeviceTensor, HostMemory, Measured, Places, Resident, Session, Tensor,
};
use lstc_tuned::opened::{Execution, Opened};
use lstc_tuned::side::Side;
use ndarray::{ArrayD, IxDyn};

use super::backbone::{Backbone, Taps};
use super::buckets::listed;
use super::captures::{Captures, Shape, Way};
use crate::memory::Sizes;

/// What a step measures.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub loss: f64,
    /// Before clipping.
    pub grad_norm: f64,
}

/// What a step measures, on its way from the device.
#[derive(Debug)]
pub struct Pending {
    /// The loss of each batch, and its weight.
    losses: Vec<(f64, Measured)>,
    grad_norm: Measured,
}

impl Pending {
    /// Waits for the step.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    pub fn get(self) -> anyhow::Result<Outcome> {
        let mut loss = 0.0;
        for (weight, part) in self.losses {
            loss += weight * f64::from(part.get()?);
        }
        Ok(Outcome { loss, grad_norm: f64::from(self.grad_norm.get()?) })
    }
}

/// A side network in training.
pub struct Stepper<'o> {
    opened: &'o Opened,
    way: How,
    /// Parameters and both moments of each, by their names in the interface.
    state: Vec<(String, DeviceTensor)>,
    parameters: usize,
    places: Places,
    /// Why steps are not captured, although that was asked for.
    plain: Option<String>,
}

/// How a step is made.
enum How {
    /// By the side network's part of train.onnx, of one batch.
    Fused(Box<Bound>),
    /// By its part of grad.onnx for each batch, and apply.onnx for their sum.
    Accumulated(Box<Accumulated>),
}

/// Gradients of a batch, their weighted sum over batches, and the step that it makes.
struct Accumulated {
    grad: Bound,
    add: Bound,
    apply: Bound,
}

/// A session with everything bound to it that stays bound.
struct Bound {
    session: Session,
    binding: Binding,
    /// What each run measures.
    measured: Vec<DeviceTensor>,
    captures: Captures,
    /// The inputs that hold a batch's taps in the host's memory.
    taps: Vec<String>,
}

impl Bound {
    fn new(session: Session, places: &Places) -> anyhow::Result<Bound> {
        let binding = session.binding(places)?;
        Ok(Bound { session, binding, measured: Vec::new(), captures: Captures::default(), taps: Vec::new() })
    }

    /// Binds a scalar output that [`Bound::run`] returns.
    fn measure(&mut self, output: &str) -> anyhow::Result<()> {
        let mut scalar = self.session.zeros(&[])?;
        self.binding.output(output, &mut scalar)?;
        self.measured.push(scalar);
        Ok(())
    }

    fn feed(&mut self, feeds: &[(&str, Tensor)]) -> anyhow::Result<()> {
        Ok(feeds.iter().try_for_each(|(name, tensor)| self.binding.feed(name, tensor))?)
    }

    /// Feeds a batch and its taps.
    fn give(&mut self, opened: &Opened, batch: &Batch, Taps(taps): Taps) -> anyhow::Result<()> {
        for (name, tensor) in opened.feeds(batch).iter().filter(|(name, _)| self.session.takes(name)) {
            self.binding.feed(name, tensor)?;
        }
        self.binding.feed("labels", &batch.labels.clone().into())?;
        if self.session.takes(COUNTED_ROWS) {
            self.binding.feed(COUNTED_ROWS, &batch.counted_rows(listed(batch)).into())?;
        }
        for tap in taps {
            if self.binding.is_host() {
                self.taps.push(tap.name().to_owned());
            }
            self.binding.pass(tap)?;
        }
        Ok(())
    }

    /// Releases the taps. Those in the host's memory are needed elsewhere; on a device they stay in their places.
    fn let_go(&mut self) -> anyhow::Result<()> {
        // A binding keeps what is bound: one number in a tap's place, until the next is bound.
        for name in std::mem::take(&mut self.taps) {
            self.binding.feed(&name, &scalar(0.0))?;
        }
        Ok(())
    }

    /// Runs on what is bound and fed; the measured scalars, in the order in which they were bound.
    fn run(&mut self) -> anyhow::Result<Vec<Measured>> {
        self.session.run_bound(&self.binding)?;
        Ok(self.measured.iter().map(DeviceTensor::read_later).collect::<Result<_, _>>()?)
    }

    /// As [`Bound::run`], in this way; `state` is what a run writes in place. ONNX Runtime runs a graph more than once to capture
    /// it: then the state is put back, and the run that counts is the first replay.
    fn run_captured(
        &mut self,
        way: impl FnOnce(&mut Captures) -> Way,
        state: &mut [(String, DeviceTensor)],
    ) -> anyhow::Result<Vec<Measured>> {
        if !self.session.captures() {
            return self.run();
        }
        match way(&mut self.captures) {
            Way::Plain => self.binding.replay(None),
            Way::Again(graph) => self.binding.replay(Some(graph)),
            Way::First(graph) => {
                self.binding.replay(Some(graph));
                let before: Vec<DeviceTensor> =
                    state.iter().map(|(_, tensor)| tensor.copy(&self.session)).collect::<Result<_, _>>()?;
                let captured = self.session.run_bound(&self.binding);
                for ((_, tensor), before) in state.iter_mut().zip(&before) {
                    tensor.copy_from(before)?;
                }
                match captured {
                    Err(error @ lstc_runtime::Error::OutOfMemory { .. }) => return Err(error.into()),
                    Err(error) => {
                        self.captures.give_up(graph, &error);
                        self.binding.replay(None);
                    }
                    Ok(_) => {}
                }
            }
        }
        self.run()
    }

    /// Binds a tensor as an input and as the output that replaces it.
    fn replace(&mut self, input: &str, output: &str, tensor: &mut DeviceTensor) -> anyhow::Result<()> {
        self.binding.input(input, tensor)?;
        Ok(self.binding.output(output, tensor)?)
    }
}

impl<'o> Stepper<'o> {
    /// The graph that computes a step.
    pub fn graph(accumulates: bool) -> &'static str {
        if accumulates { "grad.onnx" } else { "train.onnx" }
    }

    /// A side network at some point of its training, and the backbone that it reads. `state` holds each parameter, and its moments where training has begun;
    /// `runs` is the number of batches that were run before, which decides what dropout drops.
    ///
    /// # Errors
    /// A graph that is damaged or that lstc did not write; no memory; a device that cannot be used.
    pub fn open(
        opened: &'o Opened,
        execution: &Execution,
        state: &Side,
        accumulates: bool,
        runs: u64,
    ) -> anyhow::Result<(Stepper<'o>, Backbone<'o>)> {
        let parts = opened.parts(Stepper::graph(accumulates))?;
        Stepper::of(opened, parts, execution, state, accumulates, runs)
    }

    /// As [`Stepper::open`], for the graph in two.
    ///
    /// # Errors
    /// As [`Stepper::open`].
    pub fn of(
        opened: &'o Opened,
        mut parts: Parts,
        execution: &Execution,
        state: &Side,
        accumulates: bool,
        runs: u64,
    ) -> anyhow::Result<(Stepper<'o>, Backbone<'o>)> {
        let parameters = &opened.record.parameters;
        let file = Stepper::graph(accumulates);
        if execution.device != Device::Cpu {
            parts.list_rows().map_err(|reason| Hinted::new(anyhow!(reason), "rewrite the model again"))?;
        }
        let Parts { backbone, side, .. } = parts;
        let drops = side.node_ids().any(|id| side.node(id).is("Dropout"));
        let mut plain = (execution.captures && drops).then(|| "a replay might reuse the same dropout masks".to_owned());
        // The LM head is the only constant matrix here, and two products read it: a copy for each in the kernels' own layout
        // would take the most memory of all, and be no faster.
        // Its products are small: TF32 would save less than it takes to start them.
        let unpacked = Execution { mapped: true, tf32: false, captures: execution.captures && !drops, ..*execution };
        let mut open = |graph: &Graph| {
            let (session, reason) = opened.captured(graph, &unpacked)?;
            plain = plain.take().or(reason);
            anyhow::Ok(session)
        };
        let (way, places) = if accumulates {
            let apply = opened.graph("apply.onnx")?;
            check_in_place(opened, "apply.onnx", &apply)?;
            let [grad, add, apply] = [&drop_from(side, runs), &sums(opened)?, &apply].map(&mut open);
            let (grad, add, apply) = (grad?, add?, apply?);
            let places = grad.places();
            let bound = |session| Bound::new(session, &places);
            let parts = Accumulated { grad: bound(grad)?, add: bound(add)?, apply: bound(apply)? };
            (How::Accumulated(Box::new(parts)), places)
        } else {
            check_in_place(opened, file, &side)?;
            let session = open(&drop_from(side, runs))?;
            let places = session.places();
            (How::Fused(Box::new(Bound::new(session, &places)?)), places)
        };
        let mut backbone = Backbone::new(opened, backbone, execution);
        backbone.shares(&places);
        let mut stepper = Stepper { opened, way, state: Vec::new(), parameters: parameters.len(), places, plain };
        let device = stepper.state_session();
        let mut uploaded = Vec::new();
        for p in parameters {
            let values = state.get(&p.name).ok_or_else(|| anyhow!("the side network lacks `{}`", p.name))?;
            uploaded.push((p.name.clone(), device.upload(values)?));
        }
        for (name, shape) in moments(opened) {
            let tensor = match state.get(&name) {
                Some(values) => device.upload(values)?,
                None => device.upload(&ArrayD::zeros(IxDyn(shape)))?,
            };
            uploaded.push((name, tensor));
        }
        stepper.state = uploaded;
        stepper.bind()?;
        Ok((stepper, backbone))
    }

    /// Why steps are not captured, although that was asked for.
    pub fn plain(&self) -> Option<&str> {
        let failed = match &self.way {
            How::Fused(train) => train.captures.failed(),
            How::Accumulated(parts) => {
                [&parts.grad, &parts.add, &parts.apply].into_iter().find_map(|bound| bound.captures.failed())
            }
        };
        self.plain.as_deref().or(failed)
    }

    fn state_session(&self) -> &Session {
        match &self.way {
            How::Fused(train) => &train.session,
            How::Accumulated(parts) => &parts.apply.session,
        }
    }

    /// Binds what stays bound.
    fn bind(&mut self) -> anyhow::Result<()> {
        let (parameters, state) = (self.parameters, &mut self.state);
        match &mut self.way {
            How::Fused(train) => {
                train.measure("loss")?;
                train.measure("grad_norm")?;
                for (name, tensor) in state {
                    train.replace(name, &format!("{name}.next"), tensor)?;
                }
            }
            How::Accumulated(parts) => {
                let Accumulated { grad, add, apply } = &mut **parts;
                grad.measure("loss")?;
                apply.measure("grad_norm")?;
                for (name, tensor) in &state[..parameters] {
                    let gradient = format!("{name}.grad");
                    let zeros = ArrayD::zeros(IxDyn(tensor.dims()));
                    let mut one = grad.session.upload(&zeros)?;
                    let mut sum = grad.session.upload(&zeros)?;
                    grad.binding.input(name, tensor)?;
                    grad.binding.output(&gradient, &mut one)?;
                    add.binding.input(&gradient, &one)?;
                    add.replace(&format!("{gradient}.sum"), &format!("{gradient}.next"), &mut sum)?;
                    apply.binding.input(&gradient, &sum)?;
                }
                for (name, tensor) in state {
                    apply.replace(name, &format!("{name}.next"), tensor)?;
                }
            }
        }
        Ok(())
    }

    /// One optimizer step, number `step` from 1, of one or more batches, whose taps come one after the other. Each is weighted
    /// by its labels that count, so that together they equal one batch. On a device the step continues after this returns.
    ///
    /// # Errors
    /// From ONNX Runtime; from `taps`.
    pub fn step(
        &mut self,
        batches: &[Batch],
        mut taps: impl FnMut(&Batch) -> anyhow::Result<Taps>,
        step: u64,
        lr: f64,
    ) -> anyhow::Result<Pending> {
        let opened = self.opened;
        let number = i64::try_from(step).context("too many steps")?;
        let schedule = [("lr", scalar(lr as f32)), ("step", ndarray::arr0(number).into())];
        match &mut self.way {
            How::Fused(train) => {
                let [batch] = batches else { bail!("train.onnx takes one batch per step, not {}", batches.len()) };
                train.feed(&schedule)?;
                train.give(opened, batch, taps(batch)?)?;
                let moves = self.places.moves();
                let measured = train.run_captured(|c| c.way(Shape::of(batch), moves), &mut self.state)?;
                train.let_go()?;
                let [loss, grad_norm] = two(measured)?;
                Ok(Pending { losses: vec![(1.0, loss)], grad_norm })
            }
            How::Accumulated(parts) => {
                let Accumulated { grad, add, apply } = &mut **parts;
                let counted: usize = batches.iter().map(|b| b.counted).sum();
                let mut losses = Vec::new();
                for (index, batch) in batches.iter().enumerate() {
                    let weight = batch.counted as f64 / counted.max(1) as f64;
                    grad.give(opened, batch, taps(batch)?)?;
                    let moves = self.places.moves();
                    let part = grad.run_captured(|c| c.way(Shape::of(batch), moves), &mut [])?;
                    grad.let_go()?;
                    losses.extend(part.into_iter().map(|part| (weight, part)));
                    let keep = if index == 0 { 0.0 } else { 1.0 };
                    add.feed(&[("keep", scalar(keep)), ("weight", scalar(weight as f32))])?;
                    // A capture may begin only with the first batch, which gives the same sum in every pass. What it reads
                    // besides are scalars, whose places never move.
                    add.run_captured(|c| c.way_where(Shape::ONE, 0, index == 0), &mut [])?;
                }
                apply.feed(&schedule)?;
                let measured = apply.run_captured(|c| c.way(Shape::ONE, 0), &mut self.state)?;
                let grad_norm = measured.into_iter().next().context("apply.onnx measures one number")?;
                Ok(Pending { losses, grad_norm })
            }
        }
    }

    /// As [`Session::reserve`].
    ///
    /// # Errors
    /// No memory.
    pub fn reserve(&self, bytes: u64) -> anyhow::Result<()> {
        Ok(self.state_session().reserve(bytes)?)
    }

    /// Makes room for what batches up to these sizes give the sessions, so that none of it moves to a larger place later.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn reserve_places(&self, sizes: Sizes) -> anyhow::Result<()> {
        let longest = sizes.source_length.max(sizes.target_length);
        let bytes = |length: usize| sizes.batch.saturating_mul(length).saturating_mul(size_of::<i64>());
        let inputs = self.opened.record.inputs.iter().map(|input| (input.name.as_str(), bytes(longest)));
        let labels = ["labels", COUNTED_ROWS].map(|name| (name, bytes(sizes.target_length)));
        Ok(inputs.chain(labels).try_for_each(|(name, bytes)| self.places.reserve(name, bytes))?)
    }

    /// Places for taps that do not come from the backbone.
    ///
    /// # Errors
    /// From ONNX Runtime.
    pub fn host_memory(&self) -> anyhow::Result<HostMemory> {
        Ok(self.state_session().host_memory()?)
    }

    /// As [`Session::memory`].
    ///
    /// # Errors
    /// From ONNX Runtime.
    pub fn memory(&self) -> anyhow::Result<Resident> {
        Ok(self.state_session().memory(&self.places)?)
    }

    /// What the sessions of this process hold on the CPU.
    ///
    /// # Errors
    /// From ONNX Runtime.
    pub fn arena(&self) -> anyhow::Result<Arena> {
        Ok(self.state_session().arena()?)
    }

    /// The parameters, on the device.
    pub fn parameters(&self) -> &[(String, DeviceTensor)] {
        &self.state[..self.parameters]
    }

    /// The parameters and their moments, on the device.
    pub fn all(&self) -> &[(String, DeviceTensor)] {
        &self.state
    }

    /// Sets every number of a parameter.
    ///
    /// # Errors
    /// From ONNX Runtime; a parameter that the side network does not have.
    pub fn set(&mut self, name: &str, value: f32) -> anyhow::Result<()> {
        let parameters = &mut self.state[..self.parameters];
        let found = parameters.iter_mut().find(|(parameter, _)| parameter == name);
        let (_, tensor) = found.ok_or_else(|| anyhow!("the side network lacks `{name}`"))?;
        Ok(tensor.write(&ArrayD::from_elem(IxDyn(tensor.dims()), value))?)
    }

    /// A copy of the parameters and their moments.
    ///
    /// # Errors
    /// From ONNX Runtime.
    pub fn state(&self) -> anyhow::Result<Side> {
        self.state.iter().map(|(name, tensor)| Ok((name.clone(), tensor.read()?))).collect()
    }
}

fn two(measured: Vec<Measured>) -> anyhow::Result<[Measured; 2]> {
    measured.try_into().map_err(|_| anyhow!("train.onnx measures two numbers"))
}

fn scalar(value: f32) -> Tensor {
    ndarray::arr0(value).into()
}

/// The tensors of AdamW's moments, with their shapes.
fn moments(opened: &Opened) -> impl Iterator<Item = (String, &[usize])> {
    opened.record.moments.iter().flat_map(|m| m.tensors().map(|name| (name, m.shape.as_slice())))
}

/// Makes sure that the state may be updated in place.
fn check_in_place(opened: &Opened, file: &str, graph: &Graph) -> anyhow::Result<()> {
    let find = |name: &str| graph.find(name).ok_or_else(|| opened.lacks(file, name));
    let mut pairs = Vec::new();
    let parameters = opened.record.parameters.iter().map(|p| p.name.clone());
    for name in parameters.chain(moments(opened).map(|(name, _)| name)) {
        pairs.push((find(&name)?, find(&format!("{name}.next"))?));
    }
    written_in_place(graph, &pairs, find("grad_norm")?)
        .map_err(|reason| anyhow!("`{file}` is not as lstc writes it: {reason}"))
}

/// The graph as a session would find it after so many runs: ONNX Runtime draws the mask of a `Dropout` from its seed,
/// and adds one to the seed after each run.
fn drop_from(mut graph: Graph, runs: u64) -> Graph {
    let dropouts: Vec<_> = graph.node_ids().filter(|id| graph.node(*id).is("Dropout")).collect();
    for id in dropouts {
        if let Some(Attribute::Int(seed)) = graph.node(id).attributes.get("seed") {
            let seed = seed.wrapping_add(runs as i64);
            graph.set_attribute(id, "seed", Attribute::Int(seed));
        }
    }
    graph
}

/// ```text
/// <name>.grad.next = keep <name>.grad.sum + weight <name>.grad
/// ```
fn sums(opened: &Opened) -> anyhow::Result<Graph> {
    let opset = opened.graph("apply.onnx")?;
    let mut graph = Graph::new("sum", opset.opset());
    graph.ir_version = opset.ir_version;
    let mut input = |name: &str, dims: &[usize]| {
        let shape: Vec<Dim> = dims.iter().map(|d| Dim::Value(i32::try_from(*d).unwrap_or(i32::MAX))).collect();
        graph.add_input(name, DType::F32, &shape, Role::Frozen).map_err(|reason| anyhow!(reason))
    };
    let (keep, weight) = (input("keep", &[])?, input("weight", &[])?);
    let mut pairs: Vec<(String, ValueId, ValueId)> = Vec::new();
    for p in &opened.record.parameters {
        let gradient = format!("{}.grad", p.name);
        let sum = input(&format!("{gradient}.sum"), &p.shape)?;
        let one = input(&gradient, &p.shape)?;
        pairs.push((gradient, sum, one));
    }
    let b = Builder::new(&mut graph, Origin::pass("sum"));
    let next = pairs.iter().map(|(name, sum, one)| {
        let next = b.add(b.mul(*sum, keep), b.mul(*one, weight));
        b.named(next, &format!("{name}.next"))
    });
    let next: Vec<ValueId> = next.collect();
    graph.outputs = next;
    Ok(graph)
}
