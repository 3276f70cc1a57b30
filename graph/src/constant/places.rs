//! Operators that gather, scatter, repeat and reduce: what exporters build masks with besides arithmetic.

use ndarray::{ArrayD, Axis, IxDyn};

use super::{Call, Constant, Data, axis, float, int};
use crate::dtype::DType;

impl Call<'_, '_> {
    /// `GatherND`, `GatherElements`, `ScatterND`, `Tile` and `Trilu`: elements in other places.
    pub(super) fn placed<T: Copy + Default>(&self, x: &ArrayD<T>, updates: Option<&ArrayD<T>>) -> Option<ArrayD<T>> {
        match self.node.op.as_str() {
            "GatherND" => self.gather_nd(x),
            "GatherElements" => self.gather_elements(x),
            "ScatterND" => self.scatter_nd(x, updates?),
            "Tile" => self.tile(x),
            "Trilu" => self.triangle(x),
            _ => None,
        }
    }

    fn gather_nd<T: Copy>(&self, x: &ArrayD<T>) -> Option<ArrayD<T>> {
        let indices = self.at(1)?;
        let batched = usize::try_from(self.int("batch_dims", 0)).ok()?;
        let (dims, (depth, outer)) = (x.shape(), indices.dims().split_last()?);
        if batched > outer.len() || outer.get(..batched) != dims.get(..batched) || batched + depth > dims.len() {
            return None;
        }
        let inner: usize = dims[batched + depth..].iter().product();
        let made = [outer, &dims[batched + depth..]].concat();
        if !self.fits(&made) {
            return None;
        }
        let numbers = indices.ints()?;
        let rows: usize = outer.iter().product();
        let per_batch: usize = outer[batched..].iter().product();
        let source: Vec<T> = x.iter().copied().collect();
        let mut elements = Vec::new();
        for row in 0..rows {
            let place = row.checked_div(per_batch)?;
            let index = &numbers[row * depth..(row + 1) * depth];
            let at = index.iter().zip(&dims[batched..]).try_fold(place, |at, (i, d)| Some(at * d + axis(*i, *d)?))?;
            elements.extend_from_slice(source.get(at * inner..(at + 1) * inner)?);
        }
        ArrayD::from_shape_vec(IxDyn(&made), elements).ok()
    }

    fn gather_elements<T: Copy>(&self, x: &ArrayD<T>) -> Option<ArrayD<T>> {
        let indices = self.at(1)?;
        let along = axis(self.int("axis", 0), x.ndim())?;
        let Data::Int(numbers) = &indices.data else { return None };
        if numbers.ndim() != x.ndim() {
            return None;
        }
        let element = |(mut place, index): (IxDyn, &i64)| {
            place[along] = axis(*index, x.shape()[along])?;
            x.get(place).copied()
        };
        let elements: Option<Vec<T>> = numbers.indexed_iter().map(element).collect();
        ArrayD::from_shape_vec(numbers.raw_dim(), elements?).ok()
    }

    fn scatter_nd<T: Copy>(&self, x: &ArrayD<T>, updates: &ArrayD<T>) -> Option<ArrayD<T>> {
        let indices = self.at(1)?;
        if self.node.attributes.get_str("reduction").is_some_and(|reduction| reduction != "none") {
            return None;
        }
        let (dims, (depth, outer)) = (x.shape().to_vec(), indices.dims().split_last()?);
        let inner: usize = dims.get(*depth..)?.iter().product();
        let numbers = indices.ints()?;
        let rows: usize = outer.iter().product();
        let (mut made, updates): (Vec<T>, Vec<T>) = (x.iter().copied().collect(), updates.iter().copied().collect());
        if updates.len() != rows.checked_mul(inner)? {
            return None;
        }
        for row in 0..rows {
            let index = &numbers[row * depth..(row + 1) * depth];
            let at = index.iter().zip(&dims).try_fold(0, |at, (i, d)| Some(at * d + axis(*i, *d)?))?;
            made.get_mut(at * inner..(at + 1) * inner)?.copy_from_slice(&updates[row * inner..(row + 1) * inner]);
        }
        ArrayD::from_shape_vec(IxDyn(&dims), made).ok()
    }

    fn tile<T: Copy>(&self, x: &ArrayD<T>) -> Option<ArrayD<T>> {
        let repeats = super::sizes(&self.at(1)?.ints()?)?;
        if repeats.len() != x.ndim() {
            return None;
        }
        let dims: Vec<usize> = x.shape().iter().zip(&repeats).map(|(d, n)| d.checked_mul(*n)).collect::<Option<_>>()?;
        let place = |mut at: IxDyn| {
            for (axis, size) in x.shape().iter().enumerate() {
                at[axis] %= (*size).max(1);
            }
            x[at]
        };
        (self.fits(&dims)).then(|| ArrayD::from_shape_fn(IxDyn(&dims), place))
    }

    fn triangle<T: Copy + Default>(&self, x: &ArrayD<T>) -> Option<ArrayD<T>> {
        let shift = match self.node.input(1) {
            Some(_) => self.at(1)?.scalar()?,
            None => 0,
        };
        let (upper, rank) = (self.int("upper", 1) != 0, x.ndim());
        let rows = rank.checked_sub(2)?;
        let mut made = x.clone();
        for (place, element) in made.indexed_iter_mut() {
            let below = (place[rank - 1] as i64).checked_sub(place[rows] as i64)?.checked_sub(shift)?;
            if if upper { below < 0 } else { below > 0 } {
                *element = T::default();
            }
        }
        Some(made)
    }

    /// Sums along an axis, each element with those before it.
    pub(super) fn cumulative(&self) -> Option<Constant> {
        let x = self.at(0)?;
        let Data::Int(array) = &x.data else { return None };
        let along = axis(self.at(1)?.scalar()?, array.ndim())?;
        if self.int("exclusive", 0) != 0 || self.int("reverse", 0) != 0 {
            return None;
        }
        let mut sums = array.clone();
        for mut lane in sums.lanes_mut(Axis(along)) {
            let mut sum = 0_i64;
            for element in &mut lane {
                sum = sum.checked_add(*element)?;
                *element = sum;
            }
        }
        int(x.dtype, sums)
    }

    /// The largest, the least, the sum or the product over axes. A sum of floats depends on its order: only integers are summed.
    pub(super) fn reduction(&self) -> Option<Constant> {
        let x = self.at(0)?;
        let rank = x.dims().len();
        let axes = match self.ints(1, "axes")? {
            None if self.int("noop_with_empty_axes", 0) != 0 => return Some(x.clone()),
            None => (0..rank).collect(),
            Some(axes) => axes.iter().map(|a| axis(*a, rank)).collect::<Option<Vec<_>>>()?,
        };
        let keep = self.int("keepdims", 1) != 0;
        let op = self.node.op.as_str();
        match &x.data {
            Data::Int(array) => {
                let one = |a: i64, b: i64| match op {
                    "ReduceMax" => Some(a.max(b)),
                    "ReduceMin" => Some(a.min(b)),
                    "ReduceSum" => a.checked_add(b),
                    "ReduceProd" => a.checked_mul(b),
                    _ => None,
                };
                int(x.dtype, reduced(array, axes, keep, one)?)
            }
            Data::Float(array) => {
                let one = |a: f32, b: f32| match op {
                    _ if a.is_nan() || b.is_nan() => None,
                    "ReduceMax" => Some(a.max(b)),
                    "ReduceMin" => Some(a.min(b)),
                    _ => None,
                };
                float(reduced(array, axes, keep, one)?)
            }
        }
    }

    /// Truth of what a float is.
    pub(super) fn float_is(&self, holds: impl Fn(f32) -> bool) -> Option<Constant> {
        let Data::Float(array) = &self.at(0)?.data else { return None };
        int(DType::Bool, array.mapv(|v| i64::from(holds(v))))
    }
}

fn reduced<T: Copy>(
    x: &ArrayD<T>,
    mut axes: Vec<usize>,
    keep: bool,
    one: impl Fn(T, T) -> Option<T>,
) -> Option<ArrayD<T>> {
    axes.sort_unstable();
    axes.dedup();
    let mut made = x.clone();
    for along in axes.into_iter().rev() {
        let mut parts = made.axis_iter(Axis(along));
        let mut sum = parts.next()?.to_owned();
        for part in parts {
            for (a, b) in sum.iter_mut().zip(&part) {
                *a = one(*a, *b)?;
            }
        }
        made = if keep { sum.insert_axis(Axis(along)) } else { sum };
    }
    Some(made)
}
