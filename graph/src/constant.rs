//! Small constant tensors, and the operators that sizes pass through on their way to shapes, indices and masks.
//!
//! **Invariant:** a result is what the operator gives on every machine; otherwise nothing is folded: integers that overflow, casts of
//! floats that no integer holds and indices out of range are left to the runtime. Floats take single IEEE 754
//! operations; `Log` alone is a library's, and is rounded from f64.
//!
//! **Invariant:** nothing is allocated beyond the limit, whatever a file's constants ask for.

mod places;

use ndarray::{ArrayD, Axis, IxDyn, concatenate};

use crate::attribute::Attribute;
use crate::dtype::DType;
use crate::evaluate::Numbers;
use crate::infer::MAX_RANK;
use crate::ir::{Graph, Node, ValueId};
use crate::weight::Weight;

/// A tensor of i64, i32, bool or f32.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Constant {
    dtype: DType,
    data: Data,
}

#[derive(Clone, Debug, PartialEq)]
enum Data {
    /// Of i64, i32 and bool.
    Int(ArrayD<i64>),
    Float(ArrayD<f32>),
}

/// The same expression on the array of either kind.
macro_rules! either {
    ($data:expr, $array:ident => $result:expr) => {
        match $data {
            Data::Int($array) => Data::Int($result),
            Data::Float($array) => Data::Float($result),
        }
    };
}

impl Constant {
    /// A weight that may be part of shape arithmetic: integers and booleans up to `limit` bytes, or one float.
    pub(crate) fn of_sizes(weight: &Weight, limit: usize) -> Option<Constant> {
        let is_float = weight.dtype().is_float();
        let fits = !is_float || weight.dtype() == DType::F32 && weight.elements() == 1;
        fits.then(|| Constant::of_weight(weight, limit))?
    }

    /// A weight of up to `limit` bytes.
    pub(crate) fn of_weight(weight: &Weight, limit: usize) -> Option<Constant> {
        let dims = IxDyn(weight.dims());
        let data = match weight.dtype() {
            _ if weight.bytes().len() > limit => return None,
            DType::I64 | DType::I32 | DType::Bool => Data::Int(ArrayD::from_shape_vec(dims, weight.to_i64()?).ok()?),
            dtype if dtype.is_float() => Data::Float(ArrayD::from_shape_vec(dims, weight.to_f32()?).ok()?),
            _ => return None,
        };
        Some(Constant { dtype: weight.dtype(), data })
    }

    /// The elements as floats.
    pub(crate) fn numbers(&self) -> Numbers {
        let elements = match &self.data {
            Data::Int(a) => a.iter().map(|v| *v as f32).collect(),
            Data::Float(a) => a.iter().copied().collect(),
        };
        Numbers { dims: self.dims().to_vec(), elements }
    }

    pub(crate) fn of_ints(dtype: DType, dims: &[usize], values: Vec<i64>) -> Option<Constant> {
        int(dtype, ArrayD::from_shape_vec(IxDyn(dims), values).ok()?)
    }

    pub(crate) fn to_weight(&self) -> Option<Weight> {
        let bytes: Vec<u8> = match (&self.data, self.dtype) {
            (Data::Int(a), DType::I64) => a.iter().flat_map(|v| v.to_le_bytes()).collect(),
            (Data::Int(a), DType::I32) => a.iter().flat_map(|v| (*v as i32).to_le_bytes()).collect(),
            (Data::Int(a), _) => a.iter().map(|v| u8::from(*v != 0)).collect(),
            (Data::Float(a), _) => a.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        Weight::new(self.dtype, self.dims().to_vec(), bytes.into(), None)
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn dims(&self) -> &[usize] {
        match &self.data {
            Data::Int(a) => a.shape(),
            Data::Float(a) => a.shape(),
        }
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        match &self.data {
            Data::Int(a) => a.len() * 8,
            Data::Float(a) => a.len() * 4,
        }
    }

    fn ints(&self) -> Option<Vec<i64>> {
        match &self.data {
            Data::Int(a) => Some(a.iter().copied().collect()),
            Data::Float(_) => None,
        }
    }

    fn scalar(&self) -> Option<i64> {
        <[i64; 1]>::try_from(self.ints()?).ok().map(|[value]| value)
    }
}

/// Integers of a type that holds them.
fn int(dtype: DType, array: ArrayD<i64>) -> Option<Constant> {
    let fits = match dtype {
        DType::I64 => true,
        DType::I32 => array.iter().all(|v| i32::try_from(*v).is_ok()),
        DType::Bool => array.iter().all(|v| matches!(v, 0 | 1)),
        _ => false,
    };
    fits.then_some(Constant { dtype, data: Data::Int(array) })
}

fn float(array: ArrayD<f32>) -> Option<Constant> {
    Some(Constant { dtype: DType::F32, data: Data::Float(array) })
}

/// The one output of a node, from those of its operands that are known.
pub(crate) fn evaluate<'c>(
    graph: &Graph,
    node: &Node,
    known: impl Fn(ValueId) -> Option<&'c Constant>,
    limit: usize,
) -> Option<Constant> {
    if !node.is_default_domain() {
        return None;
    }
    let call = Call { node, operands: node.inputs.iter().map(|v| v.and_then(&known)).collect(), limit };
    match node.op.as_str() {
        "Add" | "Sub" | "Mul" | "Div" | "Min" | "Max" | "Sum" => call.arithmetic(),
        "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" => call.comparison(),
        "And" | "Or" | "Xor" => call.logic(),
        "Not" | "Abs" | "Neg" | "Sqrt" | "Log" => call.unary(),
        "Cast" => call.cast(DType::from_onnx(node.attributes.get_int("to")?)?),
        "CastLike" => call.cast(graph.value(node.input(1)?).dtype?),
        "Where" => call.select(),
        "Range" => call.range(),
        "Shape" | "Size" => call.sizes(),
        "ConstantOfShape" => call.constant_of_shape(),
        "Concat" => call.concat(),
        "CumSum" => call.cumulative(),
        "IsNaN" => call.float_is(f32::is_nan),
        "IsInf" => call.float_is(f32::is_infinite).filter(|_| node.attributes.is_empty()),
        "ReduceMax" | "ReduceMin" | "ReduceSum" | "ReduceProd" => call.reduction(),
        "GatherND" | "GatherElements" | "ScatterND" | "Tile" | "Trilu" => {
            let (x, updates) = (call.at(0)?, call.at(2).map(|updates| &updates.data));
            let data = match (&x.data, updates) {
                (Data::Int(a), Some(Data::Int(updates))) => Data::Int(call.placed(a, Some(updates))?),
                (Data::Float(a), Some(Data::Float(updates))) => Data::Float(call.placed(a, Some(updates))?),
                (Data::Int(a), None) => Data::Int(call.placed(a, None)?),
                (Data::Float(a), None) => Data::Float(call.placed(a, None)?),
                _ => return None,
            };
            Some(Constant { dtype: x.dtype, data })
        }
        "Identity" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Expand" | "Transpose" | "Gather" | "Slice" => {
            let x = call.at(0)?;
            let data = match &x.data {
                Data::Int(a) => Data::Int(call.moved(a)?),
                Data::Float(a) => Data::Float(call.moved(a)?),
            };
            Some(Constant { dtype: x.dtype, data })
        }
        _ => None,
    }
}

/// A node with its known operands.
struct Call<'n, 'c> {
    node: &'n Node,
    operands: Vec<Option<&'c Constant>>,
    limit: usize,
}

impl<'c> Call<'_, 'c> {
    fn at(&self, index: usize) -> Option<&'c Constant> {
        self.operands.get(index).copied().flatten()
    }

    /// An operand of integers that was an attribute in earlier opsets. `Some(None)` where it is left out.
    fn ints(&self, index: usize, attribute: &str) -> Option<Option<Vec<i64>>> {
        match self.node.input(index) {
            Some(_) => Some(Some(self.at(index)?.ints()?)),
            None => Some(self.node.attributes.get_ints(attribute).map(<[i64]>::to_vec)),
        }
    }

    fn int(&self, name: &str, default: i64) -> i64 {
        self.node.attributes.get_int(name).unwrap_or(default)
    }

    /// True where a tensor of these dimensions may be made.
    fn fits(&self, dims: &[usize]) -> bool {
        let elements = dims.iter().try_fold(1_usize, |n, d| n.checked_mul(*d));
        dims.len() <= MAX_RANK && elements.is_some_and(|n| n <= self.limit / 8)
    }

    /// The shape that all operands broadcast to.
    fn broadcast(&self) -> Option<IxDyn> {
        let mut dims = Vec::new();
        for operand in &self.operands {
            dims = broadcast(&dims, (*operand)?.dims())?;
        }
        self.fits(&dims).then(|| IxDyn(&dims))
    }

    fn arithmetic(&self) -> Option<Constant> {
        let shape = self.broadcast()?;
        let first = self.at(0)?;
        let op = self.node.op.as_str();
        let mut result = either!(&first.data, a => a.broadcast(shape.clone())?.to_owned());
        for operand in &self.operands[1..] {
            let operand = (*operand)?;
            if operand.dtype != first.dtype || first.dtype == DType::Bool {
                return None;
            }
            result = match (&result, &operand.data) {
                (Data::Int(x), Data::Int(y)) => Data::Int(zip(x, y, |x, y| match op {
                    "Add" | "Sum" => x.checked_add(y),
                    "Sub" => x.checked_sub(y),
                    "Mul" => x.checked_mul(y),
                    "Div" => x.checked_div(y),
                    "Min" => Some(x.min(y)),
                    _ => Some(x.max(y)),
                })?),
                (Data::Float(x), Data::Float(y)) => Data::Float(zip(x, y, |x, y| match op {
                    "Add" | "Sum" => Some(x + y),
                    "Sub" => Some(x - y),
                    "Mul" => Some(x * y),
                    "Div" => Some(x / y),
                    _ if x.is_nan() || y.is_nan() => None,
                    "Min" => Some(if y < x { y } else { x }),
                    _ => Some(if y > x { y } else { x }),
                })?),
                _ => return None,
            };
        }
        match result {
            Data::Int(array) => int(first.dtype, array),
            Data::Float(array) => float(array),
        }
    }

    fn comparison(&self) -> Option<Constant> {
        let shape = self.broadcast()?;
        let (x, y) = (self.at(0)?, self.at(1)?);
        let op = self.node.op.as_str();
        let holds = |order: Option<std::cmp::Ordering>| {
            i64::from(order.is_some_and(|order| match op {
                "Equal" => order.is_eq(),
                "Less" => order.is_lt(),
                "LessOrEqual" => order.is_le(),
                "Greater" => order.is_gt(),
                _ => order.is_ge(),
            }))
        };
        let result = match (&x.data, &y.data) {
            (Data::Int(x), Data::Int(y)) => zip(&x.broadcast(shape)?, y, |x, y| Some(holds(Some(x.cmp(&y)))))?,
            (Data::Float(x), Data::Float(y)) => zip(&x.broadcast(shape)?, y, |x, y| Some(holds(x.partial_cmp(&y))))?,
            _ => return None,
        };
        int(DType::Bool, result)
    }

    fn logic(&self) -> Option<Constant> {
        let shape = self.broadcast()?;
        let (x, y) = (self.at(0)?, self.at(1)?);
        let (Data::Int(a), Data::Int(b), DType::Bool, DType::Bool) = (&x.data, &y.data, x.dtype, y.dtype) else {
            return None;
        };
        let op = self.node.op.as_str();
        let result = zip(&a.broadcast(shape)?, b, |x, y| {
            Some(match op {
                "And" => x & y,
                "Or" => x | y,
                _ => x ^ y,
            })
        });
        int(DType::Bool, result?)
    }

    fn unary(&self) -> Option<Constant> {
        let x = self.at(0)?;
        match (&x.data, self.node.op.as_str()) {
            (Data::Int(a), "Not") if x.dtype == DType::Bool => int(DType::Bool, a.mapv(|v| 1 - v)),
            (Data::Int(a), op @ ("Abs" | "Neg")) if x.dtype != DType::Bool => {
                let one = |v: &i64| if op == "Abs" { v.checked_abs() } else { v.checked_neg() };
                let values: Option<Vec<i64>> = a.iter().map(one).collect();
                int(x.dtype, ArrayD::from_shape_vec(a.raw_dim(), values?).ok()?)
            }
            (Data::Float(a), "Abs") => float(a.mapv(f32::abs)),
            (Data::Float(a), "Neg") => float(a.mapv(|v| -v)),
            (Data::Float(a), "Sqrt") => float(a.mapv(f32::sqrt)),
            (Data::Float(a), "Log") => float(a.mapv(|v| f64::from(v).ln() as f32)),
            _ => None,
        }
    }

    fn cast(&self, to: DType) -> Option<Constant> {
        let x = self.at(0)?;
        match (&x.data, to) {
            (Data::Int(a), DType::F32) => float(a.mapv(|v| v as f32)),
            (Data::Int(a), DType::Bool) => int(to, a.mapv(|v| i64::from(v != 0))),
            (Data::Int(a), _) => int(to, a.clone()),
            (Data::Float(a), DType::F32) => float(a.clone()),
            (Data::Float(a), DType::Bool) => int(to, a.mapv(|v| i64::from(v != 0.0))),
            (Data::Float(a), DType::I64 | DType::I32) => {
                // Of the floats that no integer holds, only those below all integers cast alike everywhere: to the least.
                let least = if to == DType::I64 { i64::MIN } else { i32::MIN.into() };
                let one = |v: &f32| match *v {
                    v if v <= -9.3e18 => Some(least),
                    v if v.abs() < 2e9 => Some(v as i64),
                    _ => None,
                };
                let values: Option<Vec<i64>> = a.iter().map(one).collect();
                int(to, ArrayD::from_shape_vec(a.raw_dim(), values?).ok()?)
            }
            _ => None,
        }
    }

    fn select(&self) -> Option<Constant> {
        let shape = self.broadcast()?;
        let (condition, x, y) = (self.at(0)?, self.at(1)?, self.at(2)?);
        let Data::Int(condition) = &condition.data else { return None };
        let condition = condition.broadcast(shape.clone())?;
        if x.dtype != y.dtype {
            return None;
        }
        let data = match (&x.data, &y.data) {
            (Data::Int(x), Data::Int(y)) => Data::Int(choose(&condition, x, y)?),
            (Data::Float(x), Data::Float(y)) => Data::Float(choose(&condition, x, y)?),
            _ => return None,
        };
        Some(Constant { dtype: x.dtype, data })
    }

    fn range(&self) -> Option<Constant> {
        let [start, end, step] = [0, 1, 2].map(|i| self.at(i).and_then(Constant::scalar));
        let (start, end, step) = (start?, end?, step?);
        let distance = i128::from(end) - i128::from(start);
        let step = i128::from(step);
        if step == 0 {
            return None;
        }
        let count = usize::try_from((distance + step - step.signum()) / step).unwrap_or(0);
        let count = if distance.signum() == step.signum() { count } else { 0 };
        if !self.fits(&[count]) {
            return None;
        }
        let values = (0..count as i128).map(|i| i64::try_from(i128::from(start) + i * step).ok());
        Constant::of_ints(self.at(0)?.dtype, &[count], values.collect::<Option<_>>()?)
    }

    /// The shape of a tensor that is known, or the number of its elements.
    fn sizes(&self) -> Option<Constant> {
        let sizes: Vec<i64> = self.at(0)?.dims().iter().map(|d| i64::try_from(*d).ok()).collect::<Option<_>>()?;
        if self.node.is("Size") {
            return Constant::of_ints(DType::I64, &[], vec![sizes.iter().product()]);
        }
        let rank = sizes.len() as i64;
        let place = |at: i64| (if at < 0 { at.saturating_add(rank) } else { at }).clamp(0, rank) as usize;
        let (start, end) = (place(self.int("start", 0)), place(self.int("end", rank)));
        let part = sizes.get(start..end.max(start))?.to_vec();
        Constant::of_ints(DType::I64, &[part.len()], part)
    }

    fn constant_of_shape(&self) -> Option<Constant> {
        let dims = sizes(&self.at(0)?.ints()?)?;
        if !self.fits(&dims) {
            return None;
        }
        match self.node.attributes.get("value") {
            None => float(ArrayD::zeros(IxDyn(&dims))),
            Some(Attribute::Tensor(value)) if value.elements() == 1 => {
                let value = Constant::of_sizes(value, self.limit)?;
                let data = either!(&value.data, a => ArrayD::from_elem(IxDyn(&dims), *a.first()?));
                Some(Constant { dtype: value.dtype, data })
            }
            Some(_) => None,
        }
    }

    fn concat(&self) -> Option<Constant> {
        let parts: Vec<&Constant> = self.operands.iter().copied().collect::<Option<_>>()?;
        let first = *parts.first()?;
        let axis = axis(self.int("axis", 0), first.dims().len())?;
        let total: usize = parts.iter().map(|p| p.bytes()).sum();
        if total > self.limit.saturating_mul(8) || parts.iter().any(|p| p.dtype != first.dtype) {
            return None;
        }
        let data = match &first.data {
            Data::Int(_) => {
                let views = parts.iter().filter_map(|p| match &p.data {
                    Data::Int(a) => Some(a.view()),
                    Data::Float(_) => None,
                });
                Data::Int(concatenate(Axis(axis), &views.collect::<Vec<_>>()).ok()?)
            }
            Data::Float(_) => {
                let views = parts.iter().filter_map(|p| match &p.data {
                    Data::Float(a) => Some(a.view()),
                    Data::Int(_) => None,
                });
                Data::Float(concatenate(Axis(axis), &views.collect::<Vec<_>>()).ok()?)
            }
        };
        Some(Constant { dtype: first.dtype, data })
    }

    /// Operators that only move elements.
    fn moved<T: Copy>(&self, x: &ArrayD<T>) -> Option<ArrayD<T>> {
        let dims = x.shape();
        match self.node.op.as_str() {
            "Identity" => Some(x.clone()),
            "Reshape" => reshaped(x, &self.reshape_dims(dims)?),
            "Flatten" => {
                let at = self.int("axis", 1);
                let at = usize::try_from(if at < 0 { at + dims.len() as i64 } else { at }).ok()?;
                let (rows, columns) = (dims.get(..at)?, dims.get(at..)?);
                reshaped(x, &[rows.iter().product(), columns.iter().product()])
            }
            "Squeeze" => {
                let squeezed: Vec<usize> = match self.ints(1, "axes")? {
                    Some(axes) => axes.iter().map(|a| axis(*a, dims.len())).collect::<Option<_>>()?,
                    None => (0..dims.len()).filter(|i| dims[*i] == 1).collect(),
                };
                let kept = dims.iter().enumerate().filter(|(i, _)| !squeezed.contains(i)).map(|(_, d)| *d);
                reshaped(x, &kept.collect::<Vec<_>>())
            }
            "Unsqueeze" => {
                let axes = self.ints(1, "axes")??;
                let rank = dims.len() + axes.len();
                let axes: Vec<usize> = axes.iter().map(|a| axis(*a, rank)).collect::<Option<_>>()?;
                let mut old = dims.iter();
                let new = (0..rank).map(|i| if axes.contains(&i) { Some(1) } else { old.next().copied() });
                reshaped(x, &new.collect::<Option<Vec<_>>>()?)
            }
            "Expand" => {
                let dims = broadcast(dims, &sizes(&self.at(1)?.ints()?)?)?;
                self.fits(&dims).then(|| x.broadcast(IxDyn(&dims)).map(|v| v.to_owned()))?
            }
            "Transpose" => {
                let perm: Vec<usize> = match self.node.attributes.get_ints("perm") {
                    Some(perm) => sizes(perm)?,
                    None => (0..dims.len()).rev().collect(),
                };
                let mut sorted = perm.clone();
                sorted.sort_unstable();
                sorted.iter().copied().eq(0..dims.len()).then(|| x.clone().permuted_axes(perm))
            }
            "Gather" => {
                let indices = self.at(1)?;
                let at = axis(self.int("axis", 0), dims.len())?;
                let place = |i: &i64| axis(*i, dims[at]);
                let places: Vec<usize> = indices.ints()?.iter().map(place).collect::<Option<_>>()?;
                let dims = [&dims[..at], indices.dims(), &dims[at + 1..]].concat();
                self.fits(&dims).then(|| reshaped(&x.select(Axis(at), &places), &dims))?
            }
            "Slice" => self.sliced(x),
            _ => None,
        }
    }

    /// Dimensions that a reshape asks for: 0 keeps one, -1 takes what is left.
    fn reshape_dims(&self, dims: &[usize]) -> Option<Vec<usize>> {
        let wanted = self.at(1)?.ints()?;
        let keeps = self.int("allowzero", 0) == 0;
        let mut free = None;
        let mut made = Vec::new();
        for (i, size) in wanted.iter().enumerate() {
            made.push(match size {
                0 if keeps => *dims.get(i)?,
                -1 if free.is_none() => {
                    free = Some(i);
                    1
                }
                size => usize::try_from(*size).ok()?,
            });
        }
        if let Some(free) = free {
            let all: usize = dims.iter().product();
            let others = made.iter().try_fold(1_usize, |n, d| n.checked_mul(*d))?;
            made[free] = all.checked_div(others)?;
        }
        Some(made)
    }

    fn sliced<T: Copy>(&self, x: &ArrayD<T>) -> Option<ArrayD<T>> {
        let (starts, ends) = (self.ints(1, "starts")??, self.ints(2, "ends")??);
        let axes = self.ints(3, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = self.ints(4, "steps")?.unwrap_or_else(|| vec![1; starts.len()]);
        let mut part = x.clone();
        for (i, at) in axes.iter().enumerate() {
            let at = axis(*at, x.ndim())?;
            let length = part.shape()[at] as i64;
            let (start, end, step) = (*starts.get(i)?, *ends.get(i)?, *steps.get(i)?);
            if step < 1 {
                return None;
            }
            let place = |v: i64| if v < 0 { v.saturating_add(length) } else { v }.clamp(0, length) as usize;
            let places: Vec<usize> = (place(start)..place(end)).step_by(usize::try_from(step).ok()?).collect();
            part = part.select(Axis(at), &places);
        }
        Some(part)
    }
}

/// An index from the end where it is negative, within a length.
fn axis(index: i64, length: usize) -> Option<usize> {
    let length = i64::try_from(length).ok()?;
    let index = if index < 0 { index.checked_add(length)? } else { index };
    usize::try_from(index).ok().filter(|_| index < length)
}

fn sizes(values: &[i64]) -> Option<Vec<usize>> {
    values.iter().map(|v| usize::try_from(*v).ok()).collect()
}

fn reshaped<T: Copy>(x: &ArrayD<T>, dims: &[usize]) -> Option<ArrayD<T>> {
    ArrayD::from_shape_vec(IxDyn(dims), x.iter().copied().collect()).ok()
}

/// The shape that two broadcast to.
fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |dims: &[usize], i: usize| (i + dims.len()).checked_sub(rank).map_or(1, |i| dims[i]);
    let both = |i: usize| match (at(a, i), at(b, i)) {
        (x, y) if x == y => Some(x),
        (1, y) => Some(y),
        (x, 1) => Some(x),
        _ => None,
    };
    (0..rank).map(both).collect()
}

/// Element by element, the second operand broadcast to the first's shape.
fn zip<T: Copy, R>(x: &ndarray::ArrayRef<T, IxDyn>, y: &ArrayD<T>, f: impl Fn(T, T) -> Option<R>) -> Option<ArrayD<R>> {
    let y = y.broadcast(x.raw_dim())?;
    let values: Option<Vec<R>> = x.iter().zip(y.iter()).map(|(x, y)| f(*x, *y)).collect();
    ArrayD::from_shape_vec(x.raw_dim(), values?).ok()
}

fn choose<T: Copy>(condition: &ndarray::ArrayRef<i64, IxDyn>, x: &ArrayD<T>, y: &ArrayD<T>) -> Option<ArrayD<T>> {
    let (x, y) = (x.broadcast(condition.raw_dim())?, y.broadcast(condition.raw_dim())?);
    let values = condition.iter().zip(x.iter().zip(y.iter())).map(|(c, (x, y))| if *c != 0 { *x } else { *y });
    ArrayD::from_shape_vec(condition.raw_dim(), values.collect()).ok()
}
