//! The graphs of the gradient tests: for each rule its variants, with the gradient written out in plain f64.
//!
//! `y` is what a graph computes from its operands. The loss is the sum of y times the weights `c`, or, where a variant
//! ends in `plain`, of y alone: then what comes in for y is one number that stands for all of y.

use ndarray::{ArrayD, ArrayViewD, Axis, Dimension, IxDyn};

/// Sizes of the symbolic dimensions.
const SIZES: [(&str, usize); 3] = [("B", 3), ("S", 5), ("N", 15)];

/// Where the central differences are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Differences {
    F64,
    /// ONNX Runtime has no f64 kernel for the operator, or the graph is about another element type.
    F32,
    /// The operand lies on a kink.
    No,
}

/// The gradient of each operand in order; what is said of a frozen operand does not count.
pub type Analytic = fn(&Point) -> Vec<ArrayD<f64>>;

pub struct Case {
    pub rule: &'static str,
    pub variant: &'static str,
    /// In the text form.
    pub operands: String,
    /// What makes y of them.
    pub body: String,
    /// Of `c`.
    pub shape: &'static str,
    /// What y is multiplied with: `c`, or what the body makes of it.
    pub weights: &'static str,
    pub opset: i64,
    pub differences: Differences,
    pub analytic: Option<Analytic>,
}

impl Case {
    fn new(rule: &'static str, variant: &'static str, operands: &str, body: &str, shape: &'static str) -> Case {
        Case {
            rule,
            variant,
            operands: operands.to_owned(),
            body: body.to_owned(),
            shape,
            weights: "c",
            opset: 17,
            differences: Differences::F64,
            analytic: None,
        }
    }

    fn is(self, analytic: Analytic) -> Case {
        Case { analytic: Some(analytic), ..self }
    }

    fn opset(self, opset: i64) -> Case {
        Case { opset, ..self }
    }

    fn weights(self, weights: &'static str) -> Case {
        Case { weights, ..self }
    }

    fn differences(self, differences: Differences) -> Case {
        Case { differences, ..self }
    }

    /// As the fixture names it.
    pub fn name(&self) -> String {
        format!("{}/{}", self.rule, self.variant)
    }

    pub fn is_plain(&self) -> bool {
        self.variant.ends_with("plain")
    }

    /// The graph in the text form.
    pub fn text(&self) -> String {
        let Case { operands, body, shape, weights, .. } = self;
        if self.is_plain() {
            format!("({operands}) {{ {body} loss = ReduceSum<keepdims=0>(y) }} -> loss")
        } else {
            format!(
                "({operands}, c: f32[{shape}]) {{ {body} weighted = Mul(y, {weights}) \
                 loss = ReduceSum<keepdims=0>(weighted) }} -> loss"
            )
        }
    }
}

/// A shape of the text form with its symbols' sizes.
pub fn sizes(shape: &str) -> Vec<usize> {
    let size = |dim: &str| {
        let symbol = SIZES.iter().find(|(name, _)| *name == dim);
        symbol.map_or_else(|| dim.parse().expect("a size or a symbol with one"), |(_, size)| *size)
    };
    shape.split(',').map(str::trim).filter(|d| !d.is_empty()).map(size).collect()
}

/// Operands, and the gradient of y.
pub struct Point {
    pub x: Vec<ArrayD<f64>>,
    pub dy: ArrayD<f64>,
}

impl Point {
    /// An operator on elements: from operands that are repeated to y's shape, and dy, to the gradient of each.
    fn each(&self, f: impl Fn(&[f64], f64) -> Vec<f64>) -> Vec<ArrayD<f64>> {
        let shape = self.dy.raw_dim();
        let x: Vec<ArrayViewD<f64>> =
            self.x.iter().map(|x| x.broadcast(shape.clone()).expect("operands broadcast to y")).collect();
        let mut full = vec![ArrayD::zeros(shape.clone()); x.len()];
        for index in ndarray::indices(shape) {
            let at: Vec<f64> = x.iter().map(|x| x[&index]).collect();
            for (full, gradient) in full.iter_mut().zip(f(&at, self.dy[&index])) {
                full[&index] = gradient;
            }
        }
        full.into_iter().zip(&self.x).map(|(full, x)| sum_to(full, x.shape())).collect()
    }

    /// An operator on the lanes along an axis, of the lane and its dy.
    fn lanes(&self, axis: usize, f: impl Fn(&[f64], &[f64]) -> Vec<f64>) -> Vec<ArrayD<f64>> {
        let mut dx = ArrayD::zeros(self.dy.raw_dim());
        let lanes = self.x[0].lanes(Axis(axis)).into_iter().zip(self.dy.lanes(Axis(axis)));
        for (mut dx, (x, dy)) in dx.lanes_mut(Axis(axis)).into_iter().zip(lanes) {
            dx.assign(&ndarray::Array1::from(f(&x.to_vec(), &dy.to_vec())));
        }
        vec![dx]
    }

    fn sum(&self, axes: &[usize], kept: bool) -> Vec<ArrayD<f64>> {
        let mut dy = self.dy.clone();
        if !kept {
            axes.iter().for_each(|axis| dy.insert_axis_inplace(Axis(*axis)));
        }
        vec![dy.broadcast(self.x[0].raw_dim()).expect("a sum broadcasts to what it is of").to_owned()]
    }

    fn reshaped(&self) -> Vec<ArrayD<f64>> {
        vec![self.dy.to_shape(self.x[0].raw_dim()).expect("as many elements").to_owned()]
    }

    fn permuted(&self, axes: &[usize]) -> Vec<ArrayD<f64>> {
        vec![self.dy.clone().permuted_axes(IxDyn(axes))]
    }
}

/// The sum over the axes along which something of `shape` was repeated.
fn sum_to(mut array: ArrayD<f64>, shape: &[usize]) -> ArrayD<f64> {
    while array.ndim() > shape.len() {
        array = array.sum_axis(Axis(0));
    }
    for (axis, _) in shape.iter().enumerate().filter(|(_, size)| **size == 1) {
        array = array.sum_axis(Axis(axis)).insert_axis(Axis(axis));
    }
    array
}

fn probabilities(x: &[f64]) -> Vec<f64> {
    let largest = x.iter().copied().fold(f64::MIN, f64::max);
    let total: f64 = x.iter().map(|v| (v - largest).exp()).sum();
    x.iter().map(|v| (v - largest).exp() / total).collect()
}

/// `sum over j of dy_j J_ji`, from the Jacobian's elements `J(p, j, i)`.
fn through_jacobian(x: &[f64], dy: &[f64], jacobian: fn(&[f64], usize, usize) -> f64) -> Vec<f64> {
    let p = probabilities(x);
    (0..x.len()).map(|i| (0..x.len()).map(|j| dy[j] * jacobian(&p, j, i)).sum()).collect()
}

fn softmax(x: &[f64], dy: &[f64]) -> Vec<f64> {
    through_jacobian(x, dy, |p, j, i| p[j] * (f64::from(u8::from(i == j)) - p[i]))
}

fn log_softmax(x: &[f64], dy: &[f64]) -> Vec<f64> {
    through_jacobian(x, dy, |p, j, i| f64::from(u8::from(i == j)) - p[i])
}

fn mat_mul(p: &Point) -> Vec<ArrayD<f64>> {
    let rank = p.dy.ndim();
    let batched = |x: &ArrayD<f64>| {
        let shape = [&p.dy.shape()[..rank - 2], &x.shape()[x.ndim() - 2..]].concat();
        x.broadcast(shape).expect("batches broadcast").to_owned()
    };
    let (a, b) = (batched(&p.x[0]), batched(&p.x[1]));
    let (mut da, mut db) = (ArrayD::zeros(a.raw_dim()), ArrayD::zeros(b.raw_dim()));
    for index in ndarray::indices(p.dy.raw_dim()) {
        for k in 0..a.shape()[rank - 1] {
            let (mut of_a, mut of_b) = (index.clone(), index.clone());
            of_a[rank - 1] = k;
            of_b[rank - 2] = k;
            da[&of_a] += p.dy[&index] * b[&of_b];
            db[&of_b] += p.dy[&index] * a[&of_a];
        }
    }
    vec![sum_to(da, p.x[0].shape()), sum_to(db, p.x[1].shape())]
}

fn gemm<const TA: bool, const TB: bool>(p: &Point) -> Vec<ArrayD<f64>> {
    let (a, b) = (&p.x[0], &p.x[1]);
    let (mut da, mut db) = (ArrayD::zeros(a.raw_dim()), ArrayD::zeros(b.raw_dim()));
    for index in ndarray::indices(p.dy.raw_dim()) {
        let (i, j) = (index[0], index[1]);
        for k in 0..a.shape()[usize::from(!TA)] {
            let of_a = if TA { [k, i] } else { [i, k] };
            let of_b = if TB { [j, k] } else { [k, j] };
            da[IxDyn(&of_a)] += p.dy[&index] * b[IxDyn(&of_b)];
            db[IxDyn(&of_b)] += p.dy[&index] * a[IxDyn(&of_a)];
        }
    }
    let bias = p.x.get(2).map(|d| sum_to(p.dy.clone(), d.shape()));
    [da, db].into_iter().chain(bias).collect()
}

/// A row or column of an index that may count from the end.
fn place(index: f64, size: usize) -> usize {
    (if index < 0.0 { index + size as f64 } else { index }) as usize
}

fn gather(p: &Point) -> Vec<ArrayD<f64>> {
    let (table, indices) = (&p.x[0], &p.x[1]);
    let mut gradient = ArrayD::zeros(table.raw_dim());
    for index in ndarray::indices(p.dy.raw_dim()) {
        let last = index.ndim() - 1;
        let row = place(indices[&index.as_array_view().to_vec()[..last]], table.shape()[0]);
        gradient[[row, index[last]].as_slice()] += p.dy[&index];
    }
    vec![gradient]
}

fn gather_elements(p: &Point) -> Vec<ArrayD<f64>> {
    let (x, indices) = (&p.x[0], &p.x[1]);
    let mut gradient = ArrayD::zeros(x.raw_dim());
    for index in ndarray::indices(p.dy.raw_dim()) {
        gradient[[index[0], place(indices[&index], x.shape()[1])].as_slice()] += p.dy[&index];
    }
    vec![gradient]
}

/// Operands of two, and what they broadcast to.
const PAIRS: [(&str, &str, &str, &str); 12] = [
    ("same", "B, 4", "B, 4", "B, 4"),
    ("row", "B, 4", "4", "B, 4"),
    ("one element", "B, 4", "1", "B, 4"),
    ("scalar", "B, 4", "", "B, 4"),
    ("scalar first", "", "B, 4", "B, 4"),
    ("both", "B, 1, 4", "3, 1", "B, 3, 4"),
    ("sequence", "B, S, 4", "S, 4", "B, S, 4"),
    ("same, plain", "B, 4", "B, 4", "B, 4"),
    ("row, plain", "B, 4", "4", "B, 4"),
    ("row first, plain", "4", "B, 4", "B, 4"),
    ("both, plain", "B, 1, 4", "3, 1", "B, 3, 4"),
    ("kept axis, plain", "B, 1", "B, 4", "B, 4"),
];

fn of_two() -> Vec<Case> {
    let rules: [(&str, Analytic); 4] = [
        ("Add", |p| p.each(|_, dy| vec![dy, dy])),
        ("Sub", |p| p.each(|_, dy| vec![dy, -dy])),
        ("Mul", |p| p.each(|x, dy| vec![dy * x[1], dy * x[0]])),
        ("Div", |p| p.each(|x, dy| vec![dy / x[1], -dy * x[0] / (x[1] * x[1])])),
    ];
    let twice: [(&str, &str, Analytic); 5] = [
        ("Add", "twice", |p| p.each(|_, dy| vec![2.0 * dy])),
        ("Sub", "twice", |p| p.each(|_, _| vec![0.0])),
        ("Mul", "twice", |p| p.each(|x, dy| vec![2.0 * x[0] * dy])),
        ("Mul", "twice, plain", |p| p.each(|x, dy| vec![2.0 * x[0] * dy])),
        ("Div", "twice", |p| p.each(|_, _| vec![0.0])),
    ];
    let mut cases = Vec::new();
    for (rule, analytic) in rules {
        for (variant, a, b, y) in PAIRS {
            let operands = format!("trainable a: f32[{a}], trainable b: f32[{b}]");
            cases.push(Case::new(rule, variant, &operands, &format!("y = {rule}(a, b)"), y).is(analytic));
        }
    }
    for (rule, variant, analytic) in twice {
        let body = format!("y = {rule}(a, a)");
        cases.push(Case::new(rule, variant, "trainable a: f32[B, 4]", &body, "B, 4").is(analytic));
    }
    cases
}

fn of_many() -> Vec<Case> {
    let three = "trainable a: f32[B, 4], trainable b: f32[4], trainable d: f32[]";
    let mut cases = vec![
        Case::new("Sum", "three", three, "y = Sum(a, b, d)", "B, 4").is(|p| p.each(|_, dy| vec![dy; 3])),
        Case::new("Sum", "three, plain", three, "y = Sum(a, b, d)", "B, 4").is(|p| p.each(|_, dy| vec![dy; 3])),
        Case::new("Sum", "one", "trainable a: f32[B, 4]", "y = Sum(a)", "B, 4").is(|p| p.each(|_, dy| vec![dy])),
        Case::new("Sum", "twice", "trainable a: f32[B, 1], trainable b: f32[B, 4]", "y = Sum(a, b, a)", "B, 4")
            .is(|p| p.each(|_, dy| vec![2.0 * dy, dy])),
    ];
    for (variant, k, a, b, y) in [
        ("same", "B, 4", "B, 4", "B, 4", "B, 4"),
        ("row condition", "4", "B, 4", "B, 4", "B, 4"),
        ("column condition", "B, 1", "B, 4", "4", "B, 4"),
        ("scalars", "B, 4", "", "1", "B, 4"),
        ("all broadcast", "B, 1, 1", "S, 1", "4", "B, S, 4"),
        ("row condition, plain", "4", "4", "B, 4", "B, 4"),
        ("column condition, plain", "B, 1", "B, 4", "4", "B, 4"),
        ("all broadcast, plain", "B, 1, 1", "S, 1", "4", "B, S, 4"),
    ] {
        let operands = format!("k: bool[{k}], trainable a: f32[{a}], trainable b: f32[{b}]");
        let select: Analytic = |p| p.each(|x, dy| vec![0.0, x[0] * dy, (1.0 - x[0]) * dy]);
        cases.push(Case::new("Where", variant, &operands, "y = Where(k, a, b)", y).is(select));
    }
    cases
}

fn of_one() -> Vec<Case> {
    let sigmoid = "y = Sigmoid(x)";
    let cast = "double = Cast<to=11>(x) square = Mul(double, double) y = Cast<to=1>(square)";
    let dropout = "rate = const f32[] {0} training = const bool[] {1} y, mask = Dropout(x, rate, training)";
    let rules: [(&str, &str, Differences, Analytic); 11] = [
        ("Erf", "y = Erf(x)", Differences::F32, |p| {
            p.each(|x, dy| vec![dy * 2.0 / std::f64::consts::PI.sqrt() * (-x[0] * x[0]).exp()])
        }),
        ("Exp", "y = Exp(x)", Differences::F64, |p| p.each(|x, dy| vec![dy * x[0].exp()])),
        ("Identity", "y = Identity(x)", Differences::F64, |p| p.each(|_, dy| vec![dy])),
        ("Neg", "y = Neg(x)", Differences::F64, |p| p.each(|_, dy| vec![-dy])),
        ("Reciprocal", "y = Reciprocal(x)", Differences::F64, |p| p.each(|x, dy| vec![-dy / (x[0] * x[0])])),
        ("Relu", "y = Relu(x)", Differences::F64, |p| p.each(|x, dy| vec![if x[0] > 0.0 { dy } else { 0.0 }])),
        ("Sigmoid", sigmoid, Differences::F64, |p| {
            p.each(|x, dy| vec![dy * (-x[0]).exp() / (1.0 + (-x[0]).exp()).powi(2)])
        }),
        ("Sqrt", "y = Sqrt(x)", Differences::F64, |p| p.each(|x, dy| vec![dy * 0.5 / x[0].sqrt()])),
        ("Tanh", "y = Tanh(x)", Differences::F64, |p| p.each(|x, dy| vec![dy / x[0].cosh().powi(2)])),
        ("Cast", cast, Differences::F32, |p| p.each(|x, dy| vec![2.0 * x[0] * dy])),
        ("Dropout", dropout, Differences::F64, |p| p.each(|_, dy| vec![dy])),
    ];
    let shapes = [("matrix", "B, 4"), ("three axes", "B, S, 4"), ("matrix, plain", "B, 4"), ("scalar", "")];
    let mut cases = Vec::new();
    for (rule, body, differences, analytic) in rules {
        for (variant, shape) in shapes {
            let operands = format!("trainable x: f32[{shape}]");
            cases.push(Case::new(rule, variant, &operands, body, shape).differences(differences).is(analytic));
        }
    }
    cases.push(
        Case::new("Relu", "at zero", "trainable x: f32[1, 4]", "y = Relu(x)", "1, 4")
            .differences(Differences::No)
            .is(|p| p.each(|x, dy| vec![if x[0] > 0.0 { dy } else { 0.0 }])),
    );
    let of_the_sum = "total = ReduceSum<keepdims=0>(x) y = Identity(total)";
    cases.push(
        Case::new("Identity", "of the sum, plain", "trainable x: f32[B, 4]", of_the_sum, "")
            .is(|p| p.sum(&[0, 1], false)),
    );
    cases
}

fn of_indices() -> Vec<Case> {
    let mut cases = Vec::new();
    for (variant, i, y) in [
        ("repeated rows", "i64[2, 3]", "2, 3, 4"),
        ("symbolic", "i64[B, S]", "B, S, 4"),
        ("vector", "i64[3]", "3, 4"),
        ("scalar", "i64[]", "4"),
        ("from the end", "i64[3]", "3, 4"),
        ("i32", "i32[3]", "3, 4"),
        ("plain", "i64[2, 3]", "2, 3, 4"),
    ] {
        let operands = format!("trainable t: f32[5, 4], i: {i}");
        cases.push(Case::new("Gather", variant, &operands, "y = Gather<axis=0>(t, i)", y).is(gather));
    }
    for (variant, axis, i) in [
        ("axis 1", 1, "i64"),
        ("last axis", -1, "i64"),
        ("from the end", 1, "i64"),
        ("i32", 1, "i32"),
        ("plain", 1, "i64"),
    ] {
        let operands = format!("trainable x: f32[B, 5], i: {i}[B, 1]");
        let body = format!("y = GatherElements<axis={axis}>(x, i)");
        cases.push(Case::new("GatherElements", variant, &operands, &body, "B, 1").is(gather_elements));
    }
    cases
}

fn of_matrices() -> Vec<Case> {
    let mut cases = Vec::new();
    let transpositions: [(&str, &str, &str, &str, Analytic); 4] = [
        ("nn, row bias", "B, 4", "4, 2", "transA=0, transB=0", gemm::<false, false>),
        ("nt, row bias", "B, 4", "2, 4", "transA=0, transB=1", gemm::<false, true>),
        ("tn, row bias", "4, B", "4, 2", "transA=1, transB=0", gemm::<true, false>),
        ("tt, row bias", "4, B", "2, 4", "transA=1, transB=1", gemm::<true, true>),
    ];
    for (variant, a, b, flags, analytic) in transpositions {
        let operands = format!("trainable a: f32[{a}], trainable b: f32[{b}], trainable d: f32[2]");
        cases.push(Case::new("Gemm", variant, &operands, &format!("y = Gemm<{flags}>(a, b, d)"), "B, 2").is(analytic));
    }
    for (variant, bias) in [
        ("scalar bias", ""),
        ("one element bias", "1"),
        ("column bias", "B, 1"),
        ("matrix bias", "B, 2"),
        ("row bias, plain", "2"),
    ] {
        let operands = format!("trainable a: f32[B, 4], trainable b: f32[4, 2], trainable d: f32[{bias}]");
        cases.push(Case::new("Gemm", variant, &operands, "y = Gemm(a, b, d)", "B, 2").is(gemm::<false, false>));
    }
    let two = "trainable a: f32[B, 4], trainable b: f32[4, 2]";
    cases.push(Case::new("Gemm", "no bias", two, "y = Gemm(a, b)", "B, 2").is(gemm::<false, false>));
    cases.push(Case::new("Gemm", "twice", "trainable a: f32[3, 4]", "y = Gemm<transB=1>(a, a)", "3, 3").is(|p| {
        let same = Point { x: vec![p.x[0].clone(), p.x[0].clone()], dy: p.dy.clone() };
        let both = gemm::<false, true>(&same);
        vec![&both[0] + &both[1]]
    }));
    for (variant, a, b, y) in [
        ("matrices", "B, 4", "4, 2", "B, 2"),
        ("batched", "B, 2, 4", "B, 4, 3", "B, 2, 3"),
        ("matrix second", "B, S, 4", "4, 2", "B, S, 2"),
        ("matrix first", "2, S", "B, S, 4", "B, 2, 4"),
        ("batch of one", "B, 1, 2, 4", "2, 4, 3", "B, 2, 2, 3"),
        ("both batches repeated", "B, 1, 2, 4", "1, 2, 4, 3", "B, 2, 2, 3"),
        ("batched, plain", "B, 2, 4", "B, 4, 3", "B, 2, 3"),
        ("matrix second, plain", "B, S, 4", "4, 2", "B, S, 2"),
    ] {
        let operands = format!("trainable a: f32[{a}], trainable b: f32[{b}]");
        cases.push(Case::new("MatMul", variant, &operands, "y = MatMul(a, b)", y).is(mat_mul));
    }
    let swap = |from: &str| format!("t{from} = Transpose<perm=[0, 2, 1]>({from})");
    for (variant, operands, body, y) in [
        (
            "first transposed",
            "trainable a: f32[B, 4, S], trainable b: f32[B, 4, 3]",
            format!("{} y = MatMul(ta, b)", swap("a")),
            "B, S, 3",
        ),
        (
            "second transposed",
            "trainable a: f32[B, S, 4], trainable b: f32[B, 3, 4]",
            format!("{} y = MatMul(a, tb)", swap("b")),
            "B, S, 3",
        ),
        (
            "both transposed, batch of one",
            "trainable a: f32[1, 4, S], trainable b: f32[B, 3, 4]",
            format!("{} {} y = MatMul(ta, tb)", swap("a"), swap("b")),
            "B, S, 3",
        ),
        (
            "transposed, read twice",
            "trainable a: f32[B, 4, 4], trainable b: f32[B, 4, 4]",
            format!("{} one = MatMul(ta, b) y = MatMul(one, ta)", swap("a")),
            "B, 4, 4",
        ),
    ] {
        cases.push(Case::new("MatMul", variant, operands, &body, y));
    }
    cases.push(Case::new("MatMul", "twice", "trainable a: f32[4, 4]", "y = MatMul(a, a)", "4, 4").is(|p| {
        let same = Point { x: vec![p.x[0].clone(), p.x[0].clone()], dy: p.dy.clone() };
        let both = mat_mul(&same);
        vec![&both[0] + &both[1]]
    }));
    cases
}

fn of_sums() -> Vec<Case> {
    let x = "trainable x: f32[B, S, 4]";
    let matrix = "trainable x: f32[B, 4]";
    let sum = |variant, body: &str, y, analytic: Analytic| Case::new("ReduceSum", variant, x, body, y).is(analytic);
    vec![
        sum("all axes", "y = ReduceSum<keepdims=0>(x)", "", |p| p.sum(&[0, 1, 2], false)),
        sum("all axes, kept", "y = ReduceSum<keepdims=1>(x)", "1, 1, 1", |p| p.sum(&[0, 1, 2], true)),
        sum("all axes by name", "axes = const i64[3] {0, 1, 2} y = ReduceSum<keepdims=0>(x, axes)", "", |p| {
            p.sum(&[0, 1, 2], false)
        }),
        sum("empty axes", "axes = const i64[0] {} y = ReduceSum<keepdims=0>(x, axes)", "", |p| {
            p.sum(&[0, 1, 2], false)
        }),
        sum("middle", "axes = const i64[1] {1} y = ReduceSum<keepdims=0>(x, axes)", "B, 4", |p| p.sum(&[1], false)),
        sum("middle, kept", "axes = const i64[1] {1} y = ReduceSum(x, axes)", "B, 1, 4", |p| p.sum(&[1], true)),
        sum("last", "axes = const i64[1] {-1} y = ReduceSum<keepdims=0>(x, axes)", "B, S", |p| p.sum(&[2], false)),
        sum("two", "axes = const i64[2] {0, 2} y = ReduceSum<keepdims=0>(x, axes)", "S", |p| p.sum(&[0, 2], false)),
        sum("two, kept", "axes = const i64[2] {0, 2} y = ReduceSum(x, axes)", "1, S, 1", |p| p.sum(&[0, 2], true)),
        sum("two, unordered", "axes = const i64[2] {-1, 0} y = ReduceSum<keepdims=0>(x, axes)", "S", |p| {
            p.sum(&[0, 2], false)
        }),
        sum("middle, attribute", "y = ReduceSum<axes=[1], keepdims=0>(x)", "B, 4", |p| p.sum(&[1], false)).opset(11),
        sum("two, kept, attribute", "y = ReduceSum<axes=[0, -1]>(x)", "1, S, 1", |p| p.sum(&[0, 2], true)).opset(11),
        sum("middle, plain", "axes = const i64[1] {1} y = ReduceSum<keepdims=0>(x, axes)", "B, 4", |p| {
            p.sum(&[1], false)
        }),
        sum("two, kept, plain", "axes = const i64[2] {0, 2} y = ReduceSum(x, axes)", "1, S, 1", |p| {
            p.sum(&[0, 2], true)
        }),
        Case::new("ReduceSum", "no axes, no sum", matrix, "y = ReduceSum<noop_with_empty_axes=1>(x)", "B, 4")
            .is(|p| vec![p.dy.clone()]),
        Case::new("ReduceSum", "of the operand, plain", "trainable y: f32[B, 4]", "", "B, 4")
            .is(|p| vec![p.dy.clone()]),
        Case::new(
            "ReduceSum",
            "of a sum",
            x,
            "axes = const i64[1] {1} inner = ReduceSum<keepdims=0>(x, axes) y = ReduceSum<keepdims=0>(inner, axes)",
            "B",
        )
        .is(|p| p.sum(&[1, 2], false)),
        Case::new(
            "ReduceSum",
            "on one path of two",
            matrix,
            "axes = const i64[1] {1} total = ReduceSum(x, axes) y = Mul(x, total)",
            "B, 4",
        )
        .is(|p| {
            p.lanes(1, |x, dy| {
                let (total, inner): (f64, f64) = (x.iter().sum(), x.iter().zip(dy).map(|(x, dy)| x * dy).sum());
                dy.iter().map(|dy| dy * total + inner).collect()
            })
        }),
    ]
}

fn of_layouts() -> Vec<Case> {
    let (matrix, tokens) = ("trainable x: f32[B, 4]", "trainable x: f32[B, S, 4]");
    let rows = "rows = const i64[2] {-1, 4}";
    let apart = "sizes = Shape(like) four = const i64[1] {4} shape = Concat<axis=0>(sizes, four)";
    let reshape = |variant, x: &str, body: String, c| Case::new("Reshape", variant, x, &body, c).is(Point::reshaped);
    let unsqueeze = |variant, x: &str, body: &str, y| Case::new("Unsqueeze", variant, x, body, y).is(Point::reshaped);
    let transpose = |variant, x: &str, body: &str, y| Case::new("Transpose", variant, x, body, y);
    let sides = "trainable a: f32[B, 4], trainable b: f32[B, 2]";
    let sizes = "sizes = const i64[2] {1, 3}";
    vec![
        Case::new(
            "Concat",
            "rows",
            "trainable a: f32[2, 4], trainable b: f32[1, 4]",
            "y = Concat<axis=0>(a, b)",
            "3, 4",
        ),
        Case::new("Concat", "columns", sides, "y = Concat<axis=-1>(a, b)", "B, 6"),
        Case::new("Concat", "twice, plain", matrix, "both = Concat<axis=1>(x, x) y = Mul(both, both)", "B, 8"),
        Case::new(
            "Split",
            "all parts",
            matrix,
            &format!("{sizes} p, q = Split<axis=1>(x, sizes) y = Mul(p, q)"),
            "B, 3",
        ),
        Case::new(
            "Split",
            "a part unread",
            matrix,
            &format!("{sizes} p, q = Split<axis=-1>(x, sizes) y = Exp(q)"),
            "B, 3",
        ),
        Case::new("Split", "attribute", matrix, "p, q = Split<axis=1, split=[1, 3]>(x) y = Mul(p, q)", "B, 3")
            .opset(11),
        reshape("constant", matrix, "shape = const i64[3] {-1, 2, 2} y = Reshape(x, shape)".to_owned(), "B, 2, 2"),
        reshape("rows", tokens, format!("{rows} y = Reshape(x, rows) flat = Reshape(c, rows)"), "B, S, 4")
            .weights("flat"),
        reshape(
            "from rows",
            "trainable x: f32[N, 4], like: i64[B, S]",
            format!("{apart} y = Reshape(x, shape)"),
            "B, S, 4",
        ),
        reshape(
            "there and back",
            tokens,
            format!(
                "{rows} flat = Reshape(x, rows) sizes = Shape<start=0, end=2>(x) four = const i64[1] {{4}} \
                 shape = Concat<axis=0>(sizes, four) y = Reshape(flat, shape)"
            ),
            "B, S, 4",
        ),
        reshape(
            "copied axis",
            tokens,
            "shape = const i64[2] {0, -1} y = Reshape(x, shape) flat = Reshape(c, shape)".to_owned(),
            "B, S, 4",
        )
        .weights("flat"),
        reshape(
            "to a scalar",
            "trainable x: f32[1, 1]",
            "shape = const i64[0] {} y = Reshape(x, shape)".to_owned(),
            "",
        ),
        reshape("rows, plain", tokens, format!("{rows} y = Reshape(x, rows)"), "B, S, 4"),
        unsqueeze("first", matrix, "axes = const i64[1] {0} y = Unsqueeze(x, axes)", "1, B, 4"),
        unsqueeze("last", matrix, "axes = const i64[1] {-1} y = Unsqueeze(x, axes)", "B, 4, 1"),
        unsqueeze("two", matrix, "axes = const i64[2] {0, 2} y = Unsqueeze(x, axes)", "1, B, 1, 4"),
        unsqueeze("attribute", "trainable x: f32[B, S]", "y = Unsqueeze<axes=[1]>(x)", "B, 1, S").opset(11),
        unsqueeze("plain", "trainable x: f32[B, S]", "axes = const i64[1] {0} y = Unsqueeze(x, axes)", "1, B, S"),
        transpose("matrix", matrix, "y = Transpose<perm=[1, 0]>(x)", "4, B").is(|p| p.permuted(&[1, 0])),
        transpose("perm 1 2 0", tokens, "y = Transpose<perm=[1, 2, 0]>(x)", "S, 4, B").is(|p| p.permuted(&[2, 0, 1])),
        transpose("without perm", tokens, "y = Transpose(x)", "4, S, B").is(|p| p.permuted(&[2, 1, 0])),
        transpose("heads", "trainable x: f32[B, S, 2, 3]", "y = Transpose<perm=[0, 2, 1, 3]>(x)", "B, 2, S, 3")
            .is(|p| p.permuted(&[0, 2, 1, 3])),
        transpose("matrix, plain", matrix, "y = Transpose<perm=[1, 0]>(x)", "4, B").is(|p| p.permuted(&[1, 0])),
        transpose("without perm, plain", tokens, "y = Transpose(x)", "4, S, B").is(|p| p.permuted(&[2, 1, 0])),
    ]
}

fn of_rows() -> Vec<Case> {
    let (matrix, tokens) = ("trainable x: f32[B, 4]", "trainable x: f32[B, S, 4]");
    let rules: [(&str, Analytic, Analytic, Analytic); 2] = [
        ("Softmax", |p| p.lanes(1, softmax), |p| p.lanes(2, softmax), |p| p.lanes(1, softmax)),
        ("LogSoftmax", |p| p.lanes(1, log_softmax), |p| p.lanes(2, log_softmax), |p| p.lanes(1, log_softmax)),
    ];
    let mut cases = Vec::new();
    for (rule, last, last_of_three, middle) in rules {
        let body = |axis: i64| format!("y = {rule}<axis={axis}>(x)");
        cases.push(Case::new(rule, "last axis", matrix, &body(-1), "B, 4").is(last));
        cases.push(Case::new(rule, "three axes", tokens, &body(-1), "B, S, 4").is(last_of_three));
        cases.push(Case::new(rule, "middle axis", tokens, &body(1), "B, S, 4").is(middle));
        cases.push(Case::new(rule, "large logits", matrix, &body(1), "B, 4").is(last));
    }
    let log = "y = LogSoftmax<axis=-1>(x)";
    cases.push(Case::new("LogSoftmax", "last axis, plain", matrix, log, "B, 4").is(|p| p.lanes(1, log_softmax)));
    let squared = "p = Softmax<axis=-1>(x) y = Mul(p, p)";
    cases.push(Case::new("Softmax", "squared, plain", matrix, squared, "B, 4").is(|p| {
        p.lanes(1, |x, dy| through_jacobian(x, dy, |p, j, i| 2.0 * p[j] * p[j] * (f64::from(u8::from(i == j)) - p[i])))
    }));
    cases
}

/// What the compiler emits, in small. Rules meet here; the analytic form is theirs.
fn together() -> Vec<Case> {
    let attention = "
        sizes = Shape<start=0, end=2>(x)  split = const i64[2] {2, 3}  heads = Concat<axis=0>(sizes, split)
        xq = MatMul(x, q)  hq = Reshape(xq, heads)  tq = Transpose<perm=[0, 2, 1, 3]>(hq)
        xk = MatMul(x, k)  hk = Reshape(xk, heads)  tk = Transpose<perm=[0, 2, 3, 1]>(hk)
        xv = MatMul(x, v)  hv = Reshape(xv, heads)  tv = Transpose<perm=[0, 2, 1, 3]>(hv)
        raw = MatMul(tq, tk)
        rows = Gather<axis=0>(table, i)  by_head = Transpose<perm=[2, 0, 1]>(rows)
        first = const i64[1] {0}  bias = Unsqueeze(by_head, first)
        scores = Add(raw, bias)
        p = Softmax<axis=-1>(scores)
        mixed = MatMul(p, tv)  back = Transpose<perm=[0, 2, 1, 3]>(mixed)
        flat = const i64[2] {-1, 6}
        y = Reshape(back, flat)
        weights = Reshape(c, flat)";
    let queries_last = "
        turned = Transpose<perm=[0, 1, 3, 2]>(q)  raw = MatMul(turned, k)
        biased = Add(bias, mask)  scores = Add(raw, biased)
        p = Softmax<axis=-1>(scores)  across = Transpose<perm=[0, 1, 3, 2]>(p)
        y = MatMul(v, across)";
    let norm = "
        square = Mul(x, x)  axes = const i64[1] {-1}  total = ReduceSum(square, axes)
        share = const f32[] {0.25}  mean = Mul(total, share)
        epsilon = const f32[] {0.000001}  above = Add(mean, epsilon)
        root = Sqrt(above)  scale = Reciprocal(root)
        normed = Mul(x, scale)
        y = Mul(normed, w)";
    let divided = "
        square = Mul(x, x)  axes = const i64[1] {-1}  total = ReduceSum(square, axes)
        share = const f32[] {0.25}  mean = Mul(total, share)
        epsilon = const f32[] {0.000001}  above = Add(mean, epsilon)
        root = Sqrt(above)  normed = Div(x, root)";
    let gelu = "
        half = const f32[] {0.5}  one = const f32[] {1}  root = const f32[] {0.70710678118654752}
        scaled = Mul(x, root)  curve = Erf(scaled)
        shifted = Add(curve, one)  halved = Mul(x, half)
        y = Mul(halved, shifted)";
    let gelu_tanh = "
        half = const f32[] {0.5}  one = const f32[] {1}
        c1 = const f32[] {0.79788456080286536}  c3 = const f32[] {0.035677408136300125}
        square = Mul(x, x)  scaled = Mul(square, c3)  slope = Add(scaled, c1)  inner = Mul(x, slope)
        curve = Tanh(inner)  shifted = Add(curve, one)  halved = Mul(x, half)
        y = Mul(halved, shifted)";
    let ladder = "
        inverse = const f32[] {10}  scaled = Mul(alpha, inverse)  g = Sigmoid(scaled)
        apart = Sub(s, t)  part = Mul(g, apart)
        y = Add(t, part)";
    let cross_entropy = "
        ignored = const i64[] {-100}  skip = Equal(labels, ignored)  counts = Not(skip)
        nought = const i64[] {0}  index = Where(counts, labels, nought)
        logs = LogSoftmax<axis=-1>(x)  picked = GatherElements<axis=1>(logs, index)
        zero = const f32[] {0}  counted = Where(counts, picked, zero)
        ones = Cast<to=1>(counts)  number = ReduceSum<keepdims=0>(ones)
        total = ReduceSum<keepdims=0>(counted)
        mean = Div(total, number)
        y = Neg(mean)";
    let matrix = "trainable x: f32[B, 4]";
    let weighted = format!("{matrix}, trainable w: f32[4]");
    vec![
        Case::new(
            "together",
            "attention",
            "trainable x: f32[B, S, 4], trainable q: f32[4, 6], trainable k: f32[4, 6], trainable v: f32[4, 6], \
             trainable table: f32[6, 2], i: i64[S, S]",
            attention,
            "B, S, 6",
        )
        .weights("weights"),
        Case::new(
            "together",
            "attention, queries last",
            "trainable q: f32[B, 2, 3, S], trainable k: f32[B, 2, 3, S], trainable v: f32[B, 2, 3, S], \
             trainable bias: f32[1, 2, S, S], mask: f32[B, 1, 1, S]",
            queries_last,
            "B, 2, 3, S",
        ),
        Case::new(
            "together",
            "attention, plain",
            "trainable s: f32[B, 2, S, S], trainable v: f32[B, 2, S, 3]",
            "p = Softmax<axis=-1>(s)  y = MatMul(p, v)",
            "",
        ),
        Case::new(
            "together",
            "attention, queries last, plain",
            "trainable s: f32[B, 2, S, S], trainable v: f32[B, 2, 3, S]",
            "p = Softmax<axis=-1>(s)  across = Transpose<perm=[0, 1, 3, 2]>(p)  y = MatMul(v, across)",
            "",
        ),
        Case::new("together", "norm", "trainable x: f32[B, 4], trainable w: f32[4]", norm, "B, 4"),
        Case::new("together", "norm by division", &weighted, &format!("{divided} y = Mul(normed, w)"), "B, 4"),
        Case::new("together", "norm by division, plain", &weighted, &format!("{divided} y = Mul(w, normed)"), "B, 4"),
        Case::new(
            "together",
            "norm by division, of a residual stream",
            &weighted,
            &format!("{divided} branch = Mul(normed, w) y = Add(x, branch)"),
            "B, 4",
        ),
        Case::new(
            "together",
            "norm by division, one weight for all",
            "trainable x: f32[B, 4], trainable w: f32[1]",
            &format!("{divided} y = Mul(normed, w)"),
            "B, 4",
        ),
        Case::new(
            "together",
            "norm by division, read twice",
            &weighted,
            &format!("{divided} branch = Mul(normed, w) y = Add(normed, branch)"),
            "B, 4",
        ),
        Case::new("together", "silu", matrix, "part = Sigmoid(x) y = Mul(x, part)", "B, 4"),
        Case::new("together", "gelu", matrix, gelu, "B, 4").differences(Differences::F32),
        Case::new("together", "gelu of tanh", matrix, gelu_tanh, "B, 4"),
        Case::new(
            "together",
            "ladder",
            "trainable s: f32[B, 4], trainable t: f32[B, 4], trainable alpha: f32[1]",
            ladder,
            "B, 4",
        ),
        Case::new("together", "cross-entropy, plain", "trainable x: f32[6, 5], labels: i64[6, 1]", cross_entropy, ""),
    ]
}

pub fn cases() -> Vec<Case> {
    [of_one(), of_two(), of_many(), of_rows(), of_matrices(), of_sums(), of_layouts(), of_indices(), together()]
        .into_iter()
        .flatten()
        .collect()
}
