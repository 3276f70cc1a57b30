//! Replaces the backbone's products with constant matrices by products of another type.
//!
//! ```text
//! int8   y = float(quantised(x) Q) (s_x s)     MatMulInteger, x quantised as the graph runs: the default domain
//! int4   y = MatMulNBits(x, Q, s, z)           com.microsoft, blocks of 32 in 4 bits, of chosen products in 8
//! fp16, bf16, fp32    y = cast(cast(x) W)
//! ```
//!
//! Requires: a module whose source weights no later pass reads, and so the end of the pipeline;
//! no gradient enters the backbone, and no rule for one is needed. Ensures: each value that a product made, or what becomes of it,
//! is made by other nodes, under its name and of its type; what stays in the source's precision is what the options keep, and what cannot be
//! taken: products that are fused or quantised already, matrices that the type cannot hold. An activation is quantised
//! once for all products that read it. What becomes of queries, keys and values in 8 bits on their way to their products is made
//! again with them (`heads.rs`), and norms are written as ONNX Runtime fuses them (`norms.rs`). All else of the backbone is the
//! source's own.
//!
//! A matrix is read, quantised, handed to the module's store and released before the next one is.

mod activation;
mod head;
mod heads;
pub mod matrix;
mod norms;
mod product;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use lstc_graph::{Attributes, Builder, DType, Graph, Node, NodeId, Origin, ValueId, Weight};
use lstc_models::Orientation;

use crate::module::Module;
use crate::options::{Int8Weights, Precision};
use crate::pipeline::Pass;
use crate::problem::Problem;
use activation::Activation;
pub use head::{QuantiseHead, QuantisedHead};
use heads::Heads;
use matrix::{BLOCK, BlockBits, Blocks, Floats};
pub use product::{Product, Products, by_block, products};

pub struct Quantise;

/// The origin of nodes that compute the backbone's products in another type, and the nodes around them.
pub const QUANTISE: Origin = Origin::pass("quantise");

/// The opset from which products and casts know bf16.
const BF16_OPSET: i64 = 13;

/// Keeps the bytes of a new constant, wherever the caller wants them.
#[derive(Clone)]
pub struct Store {
    keep: Arc<Keep>,
    /// Constants are zeros of the right size: no weight is read.
    sketches: bool,
}

type Keep = dyn Fn(DType, Vec<usize>, Vec<u8>) -> Result<Weight, String> + Send + Sync;

impl Store {
    pub fn new(keep: impl Fn(DType, Vec<usize>, Vec<u8>) -> Result<Weight, String> + Send + Sync + 'static) -> Store {
        Store { keep: Arc::new(keep), sketches: false }
    }

    /// For uses that need only shapes: no weight is read, and every new constant is zeros.
    pub fn sketch() -> Store {
        Store { sketches: true, ..Store::default() }
    }

    fn keep(&self, dtype: DType, dims: Vec<usize>, bytes: Vec<u8>) -> Result<Weight, String> {
        (self.keep)(dtype, dims, bytes)
    }
}

/// In memory.
impl Default for Store {
    fn default() -> Store {
        Store::new(|dtype, dims, bytes| {
            Weight::new(dtype, dims, bytes.into(), None).ok_or_else(|| "a matrix has different dimensions".to_owned())
        })
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}

/// What became of the backbone's products.
#[derive(Clone, Debug, Default)]
pub struct Quantised {
    /// The products that were taken.
    pub products: Vec<QuantisedProduct>,
    /// The norms that are written otherwise.
    norms: Vec<Remade>,
    /// The products that stay because the options keep them.
    pub kept: Vec<ValueId>,
    /// The products whose matrix the type cannot hold.
    pub unfit: Vec<ValueId>,
    /// How many others stay: fused, quantised, or of the type already.
    pub others: usize,
    /// Bytes of the matrices that were taken, and of what was made of them.
    pub bytes_before: u64,
    pub bytes_after: u64,
    /// Each node as it was made.
    made: Vec<(NodeId, Node)>,
    /// Each constant as it was made.
    constants: Vec<(ValueId, Weight)>,
}

/// A product in another type.
#[derive(Clone, Debug)]
pub struct QuantisedProduct {
    pub source: Product,
    pub matrix: NewMatrix,
    /// The values of the source that are computed by other nodes: the product's own, or, of one that makes heads, what becomes of it.
    pub remade: Vec<Remade>,
}

/// A value of the source that another node makes.
#[derive(Clone, Copy, Debug)]
pub struct Remade {
    pub value: ValueId,
    /// The node that makes it in the source.
    pub source: NodeId,
    pub by: NodeId,
}

/// The constants of a product.
#[derive(Clone, Copy, Debug)]
pub enum NewMatrix {
    /// `[in, out]`, one scale a column.
    Int8 { integers: ValueId, scales: ValueId, zero: ValueId },
    /// `[in, out]` of these sizes as `MatMulNBits` takes it.
    Blocks { integers: ValueId, scales: ValueId, zeros: Option<ValueId>, dims: [usize; 2], bits: BlockBits },
    /// `[in, out]`
    Float(ValueId),
}

impl Quantised {
    /// How many products there are.
    pub fn of(&self) -> usize {
        self.products.len() + self.kept.len() + self.unfit.len() + self.others
    }

    /// The values of the source that are computed by other nodes.
    pub fn remade(&self) -> impl Iterator<Item = &Remade> {
        self.products.iter().flat_map(|product| &product.remade).chain(&self.norms)
    }

    /// The values that nodes of this pass make, and its constants.
    pub fn inner(&self) -> HashSet<ValueId> {
        let made = self.made.iter().flat_map(|(_, node)| node.outputs.iter().flatten());
        self.constants.iter().map(|(constant, _)| constant).chain(made).copied().collect()
    }

    /// What in a graph is not as this pass left it.
    pub(crate) fn breaches(&self, graph: &Graph) -> Vec<Problem> {
        let mut breaches = Vec::new();
        let left: HashSet<NodeId> = graph.node_ids().collect();
        for (id, made) in &self.made {
            let node = left.contains(id).then(|| graph.node(*id));
            let same = node.is_some_and(|node| {
                node.op == made.op
                    && node.domain == made.domain
                    && node.inputs == made.inputs
                    && node.outputs == made.outputs
                    && node.attributes == made.attributes
            });
            if !same {
                breaches.push(Problem::node(&made.name, "a node of pass quantise was changed"));
            }
        }
        for (id, made) in &self.constants {
            let same = graph.weight(*id).is_some_and(|w| {
                w.dims() == made.dims() && w.dtype() == made.dtype() && w.bytes().as_ptr() == made.bytes().as_ptr()
            });
            if !same {
                breaches.push(Problem::value(&graph.value(*id).name, "a constant of pass quantise was changed"));
            }
        }
        let known: HashSet<NodeId> = self.made.iter().map(|(id, _)| *id).collect();
        for id in graph.node_ids().filter(|id| graph.node(*id).origin == QUANTISE && !known.contains(id)) {
            breaches.push(Problem::node(&graph.node(id).name, "pass quantise did not add this node"));
        }
        breaches
    }

    /// The numbers that a product's constants stand for, `[in, out]`, and half a step of each; for a float type, half the
    /// distance to the next number.
    pub fn dequantised(&self, graph: &Graph, product: &QuantisedProduct) -> Result<(Vec<f32>, Vec<f32>), String> {
        let weight = |v: ValueId| graph.weight(v).ok_or_else(|| "a constant is gone".to_owned());
        let floats = |w: Weight| w.to_f32().ok_or_else(|| "a scale is not a float".to_owned());
        match product.matrix {
            NewMatrix::Int8 { integers, scales, zero } => {
                let found =
                    lstc_models::Quantised::linear(weight(integers)?, weight(scales)?, Some(weight(zero)?), 1, 0)?;
                let [inputs, outputs] = found.dims();
                let scales = floats(weight(scales)?.clone())?;
                let half = (0..inputs * outputs).map(|i| scales[i % outputs] / 2.0).collect();
                Ok((floats(found.dequantised())?, half))
            }
            NewMatrix::Blocks { integers, scales, zeros, dims: [inputs, outputs], bits } => {
                let (integers, steps, zeros) = (weight(integers)?, weight(scales)?, zeros.map(weight).transpose()?);
                let shape = [outputs, inputs];
                let found = lstc_models::Quantised::packed(integers, steps, zeros, shape, bits.count(), BLOCK)?;
                let (found, scales) = (floats(found.dequantised())?, floats(weight(scales)?.clone())?);
                let blocks = inputs.div_ceil(BLOCK);
                let turned = |i: usize| (i % outputs, i / outputs);
                let value = |i| {
                    let (n, k) = turned(i);
                    found[n * inputs + k]
                };
                let half = |i| {
                    let (n, k) = turned(i);
                    scales[n * blocks + k / BLOCK] / 2.0
                };
                let all = 0..inputs * outputs;
                Ok((all.clone().map(value).collect(), all.map(half).collect()))
            }
            NewMatrix::Float(value) => {
                let weight = weight(value)?;
                let found = floats(weight.clone())?;
                let (ulp, least) = match weight.dtype() {
                    DType::F16 => (2.0_f32.powi(-11), 2.0_f32.powi(-25)),
                    DType::BF16 => (2.0_f32.powi(-8), f32::MIN_POSITIVE),
                    _ => (0.0, 0.0),
                };
                let half = found.iter().map(|v| (v.abs() * ulp).max(least)).collect();
                Ok((found, half))
            }
        }
    }
}

impl Pass for Quantise {
    fn name(&self) -> &'static str {
        "quantise"
    }

    fn run(&self, module: &mut Module) -> Result<(), Vec<Problem>> {
        if module.options.backbone.precision == Precision::Source {
            return Ok(());
        }
        let (precision, opset) = (module.options.backbone.precision, module.graph.opset());
        if precision == Precision::Bf16 && opset < BF16_OPSET {
            let what =
                format!("is bf16, which needs opset {BF16_OPSET}, and the model uses opset {opset}: export it again");
            return Err(vec![Problem::option("backbone.type", what)]);
        }
        // Of the backbone's own head only a distilled loss has a use.
        let with_head = module.options.backbone.quantise_head && module.options.loss.distill > 0.0;
        let Products { plain, others } = products(&module.graph, &module.anatomy, with_head);
        let mut problems = Vec::new();
        let mut named = |what, names: &Option<Vec<String>>| {
            named(&module.graph, &plain, what, names.as_deref().unwrap_or_default(), &mut problems)
        };
        let kept = named("kept", &module.options.backbone.kept);
        let in_8_bits = named("in_8_bits", &module.options.backbone.in_8_bits);
        for both in kept.iter().filter(|y| in_8_bits.contains(y)) {
            let name = &module.graph.value(*both).name;
            problems.push(Problem::option("backbone.kept", format!("and backbone.in_8_bits both name `{name}`")));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let blocks = module.anatomy.towers.iter().flat_map(|t| t.blocks.iter().flat_map(|b| [b.input, b.output]));
        let needed = module.cut.iter().copied().chain(module.graph.outputs.iter().copied()).chain(blocks).collect();
        let uses = module.graph.uses();
        // Of the graph as it is before anything is replaced.
        let heads_of =
            |product| Heads::of(&module.graph, &uses, &needed, product).filter(|_| precision == Precision::Int8);
        let heads: Vec<Option<Heads>> = plain.iter().map(heads_of).collect();
        let first = module.graph.node_ids().map(NodeId::index).max().map_or(0, |last| last + 1);
        let values = module.graph.values();
        module.unquantised = Some(Arc::new(module.graph.clone()));
        let mut replacing = Replacing {
            precision,
            form: module.options.backbone.int8_weights.unwrap_or_default(),
            store: &module.store,
            b: Builder::new(&mut module.graph, QUANTISE),
            matrices: HashMap::new(),
            done: Quantised { others, ..Quantised::default() },
        };
        for (product, heads) in plain.into_iter().zip(heads) {
            if kept.contains(&product.y) {
                replacing.done.kept.push(product.y);
            } else {
                let bits = if in_8_bits.contains(&product.y) { BlockBits::Eight } else { BlockBits::Four };
                replacing.replace(product, bits, heads).map_err(|what| vec![Problem::model(what)])?;
            }
        }
        if precision == Precision::Int8 {
            replacing.done.norms = norms::quotients(&replacing.b, &uses, &needed);
        }
        let Replacing { mut done, .. } = replacing;
        let graph = &module.graph;
        let made = graph.node_ids().filter(|id| id.index() >= first);
        done.made = made.map(|id| (id, graph.node(id).clone())).collect();
        let constants = graph.value_ids().skip(values).filter_map(|v| Some((v, graph.weight(v)?.clone())));
        done.constants = constants.collect();
        module.quantised = Some(done);
        Ok(())
    }
}

/// The products of these names.
fn named(
    graph: &Graph,
    products: &[Product],
    what: &str,
    names: &[String],
    problems: &mut Vec<Problem>,
) -> Vec<ValueId> {
    let mut found = Vec::new();
    for name in names {
        match products.iter().find(|p| graph.value(p.y).name == *name) {
            Some(product) => found.push(product.y),
            None => problems.push(Problem::option(
                format!("backbone.{what}"),
                format!("names `{name}`, which is not the result of a product with a constant matrix"),
            )),
        }
    }
    found
}

/// What products would make in 8 bits by blocks, each beside what makes it in the graph: values that nothing reads. `None` for
/// one whose matrix the type cannot hold.
///
/// # Errors
/// From the store.
pub fn in_8_bits(graph: &mut Graph, store: &Store, products: &[Product]) -> Result<Vec<Option<ValueId>>, String> {
    let mut replacing = Replacing {
        precision: Precision::Int4,
        form: Int8Weights::default(),
        store,
        b: Builder::new(graph, QUANTISE),
        matrices: HashMap::new(),
        done: Quantised::default(),
    };
    let mut made = |product: &Product| {
        let Some(dtype) = replacing.b.dtype(product.y) else { return Ok(None) };
        let matrix = replacing.matrix(product, None, BlockBits::Eight)?;
        Ok(matrix.map(|matrix| replacing.emit(product.x, dtype, matrix, false)))
    };
    products.iter().map(&mut made).collect()
}

/// Products that are being replaced.
struct Replacing<'m> {
    precision: Precision,
    form: Int8Weights,
    store: &'m Store,
    b: Builder<'m>,
    /// By the constant, whether it is turned, and its bits in blocks; `None` for one that the type cannot hold.
    matrices: HashMap<(ValueId, bool, BlockBits), Option<NewMatrix>>,
    done: Quantised,
}

impl Replacing<'_> {
    fn replace(&mut self, product: Product, bits: BlockBits, heads: Option<Heads>) -> Result<(), String> {
        let (x, y) = self.b.read(|g| (g.value(product.x).dtype, g.value(product.y).dtype));
        let (Some(x), Some(y)) = (x, y) else {
            self.done.others += 1;
            return Ok(());
        };
        let is_already = |dtype| x == dtype && y == dtype;
        let wanted = match self.precision {
            Precision::Fp32 => Some(DType::F32),
            Precision::Fp16 => Some(DType::F16),
            Precision::Bf16 => Some(DType::BF16),
            Precision::Source | Precision::Int8 | Precision::Int4 => None,
        };
        if wanted.is_some_and(is_already) {
            self.done.others += 1;
            return Ok(());
        }
        let Some(matrix) = self.matrix(&product, wanted, bits)? else {
            self.done.unfit.push(product.y);
            return Ok(());
        };
        self.b.scope(&format!("quantise/{}", self.b.read(|g| g.value(product.y).name.clone())));
        let made = self.emit(product.x, y, matrix, heads.is_some());
        let remade = match heads {
            Some(heads) => heads.emit(&self.b, made),
            None => {
                let by = self.b.read(|g| g.producer_of(made)).expect("a node was emitted").0;
                self.b.edit(|g| g.remake(product.y, by));
                vec![Remade { value: product.y, source: product.node, by }]
            }
        };
        self.done.products.push(QuantisedProduct { source: product, matrix, remade });
        Ok(())
    }

    /// The constants of a matrix, made once; `None` where the type cannot hold it.
    fn matrix(
        &mut self,
        product: &Product,
        wanted: Option<DType>,
        bits: BlockBits,
    ) -> Result<Option<NewMatrix>, String> {
        let key = (product.weight, product.orientation == Orientation::OutIn, bits);
        if let Some(matrix) = self.matrices.get(&key) {
            return Ok(*matrix);
        }
        let matrix = self.made(product, wanted, bits)?;
        self.matrices.insert(key, matrix);
        Ok(matrix)
    }

    fn made(&mut self, product: &Product, wanted: Option<DType>, bits: BlockBits) -> Result<Option<NewMatrix>, String> {
        let name = self.b.read(|g| g.value(product.weight).name.clone());
        let weight = self.b.read(|g| g.weight(product.weight).cloned()).expect("products are with constants");
        if wanted == Some(weight.dtype()) && product.orientation == Orientation::InOut {
            return Ok(Some(NewMatrix::Float(product.weight)));
        }
        let floats = match self.store.sketches {
            true => Floats::sketch(&weight, product.orientation),
            false => Floats::read(&weight, product.orientation),
        };
        let floats = floats.expect("the finder takes matrices of floats");
        weight.release();
        if !wanted.map_or_else(|| floats.is_finite(), |to| floats.fits(to)) {
            return Ok(None);
        }
        let dims = [floats.inputs, floats.outputs];
        let mut bytes = 0;
        let mut add = |what: &str, dtype: DType, dims: &[usize], data: Vec<u8>| {
            bytes += data.len() as u64;
            let weight = self.store.keep(dtype, dims.to_vec(), data).map_err(|e| format!("`{name}`: {e}"))?;
            Ok::<_, String>(self.b.edit(|g| g.add_weight(&format!("quantise/{name}/{what}"), weight)))
        };
        let f32s = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let matrix = match (self.precision, wanted) {
            (_, Some(to)) => NewMatrix::Float(add(to.name(), to, &dims, floats.cast(to))?),
            (Precision::Int4, _) => {
                let Blocks { blocks, integers, scales, zeros } = floats.blocks(bits);
                let outputs = floats.outputs;
                let name = format!("int{}", bits.count());
                NewMatrix::Blocks {
                    integers: add(&name, DType::U8, &[outputs, blocks, bits.bytes()], integers)?,
                    scales: add("scales", DType::F32, &[outputs * blocks], f32s(&scales))?,
                    zeros: zeros.map(|z| add("zeros", DType::U8, &[outputs * blocks.div_ceil(2)], z)).transpose()?,
                    dims,
                    bits,
                }
            }
            _ => {
                let (integers, scales) = floats.int8(self.form);
                let (dtype, zero) = match self.form {
                    Int8Weights::Signed => (DType::I8, 0),
                    Int8Weights::Unsigned => (DType::U8, 128),
                };
                let zero = Weight::new(dtype, Vec::new(), vec![zero].into(), None).expect("one byte is a scalar");
                NewMatrix::Int8 {
                    integers: add("int8", dtype, &dims, integers)?,
                    scales: add("scales", DType::F32, &dims[1..], f32s(&scales))?,
                    zero: self.b.constant(zero),
                }
            }
        };
        let known =
            |bits| self.matrices.contains_key(&(product.weight, product.orientation == Orientation::OutIn, bits));
        if ![BlockBits::Four, BlockBits::Eight].into_iter().any(known) {
            self.done.bytes_before += weight.bytes().len() as u64;
        }
        self.done.bytes_after += bytes;
        Ok(Some(matrix))
    }

    /// The value of a product, by a node of its own; of an activation in 8 bits with its first two axes exchanged, where it is to
    /// be `turned`.
    fn emit(&self, x: ValueId, y: DType, matrix: NewMatrix, turned: bool) -> ValueId {
        let b = &self.b;
        let last = |op: &str, inputs: &[ValueId], attributes| b.unshared(op, inputs, attributes, 1)[0];
        let cast = |value: ValueId, from: DType| match from == y {
            true => value,
            false => last("Cast", &[value], Attributes::none().int("to", y.onnx().into())),
        };
        match matrix {
            NewMatrix::Int8 { integers, scales, zero } => {
                let x = Activation::of(b, x);
                let activation = if turned { heads::turned(b, x.integers) } else { x.integers };
                let sums = last("MatMulInteger", &[activation, integers, x.zero, zero], Attributes::none());
                let scale = last("Mul", &[x.scale, scales], Attributes::none());
                cast(last("Mul", &[b.cast(sums, DType::F32), scale], Attributes::none()), DType::F32)
            }
            NewMatrix::Blocks { integers, scales, zeros, dims: [inputs, outputs], bits } => {
                let attributes = Attributes::none()
                    .int("K", inputs as i64)
                    .int("N", outputs as i64)
                    .int("bits", bits.count() as i64)
                    .int("block_size", BLOCK as i64)
                    .int("accuracy_level", 4);
                let operands: Vec<ValueId> =
                    [b.cast(x, DType::F32), integers, scales].into_iter().chain(zeros).collect();
                cast(b.microsoft("MatMulNBits", &operands, attributes), DType::F32)
            }
            NewMatrix::Float(matrix) => {
                let dtype = b.dtype(matrix).expect("a constant has a type");
                cast(last("MatMul", &[b.cast(x, dtype), matrix], Attributes::none()), dtype)
            }
        }
    }
}
