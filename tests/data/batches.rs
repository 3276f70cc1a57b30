//! The order of examples, and how they are padded.

use lstc_data::{Batch, Batches, Corpus, Fixed, IGNORED, Order, Reading, epoch_batches, sequential_batches};
use ndarray::{Array2, array};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::{SPECIAL, file};

/// A corpus of examples whose lengths vary: up to 60 tokens in a source, 8 in a target.
fn corpus(examples: usize) -> Corpus {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut ids = |most: u64| {
        let length = 1 + random.next_u64() % most;
        (0..length).map(|_| random.next_u64() % 4000).collect::<Vec<u64>>()
    };
    let rows: String = (0..examples)
        .map(|_| format!("{{\"input_ids\": {:?}, \"labels\": {:?}}}\n", [ids(60), vec![1]].concat(), ids(8)))
        .collect();
    file("a.jsonl", rows).read_with(&Reading::default(), None).expect("rows of ids")
}

fn flat(batches: &Batches) -> Vec<u32> {
    batches.iter().flatten().copied().collect()
}

/// Tokens of the padded sources, with padding.
fn padded(corpus: &Corpus, batches: &Batches) -> usize {
    let longest = |batch: &[u32]| batch.iter().map(|i| corpus.example(*i as usize).source.len()).max();
    batches.iter().map(|batch| batch.len() * longest(batch).unwrap_or(0)).sum()
}

#[test]
fn every_example_comes_once_in_an_epoch() {
    for examples in [1, 7, 8, 9, 1000] {
        let corpus = corpus(examples);
        for batch_size in [1, 8, 5000, usize::MAX] {
            let in_file = sequential_batches(&corpus, batch_size, Order::File);
            let by_length = sequential_batches(&corpus, batch_size, Order::Length);
            let all: Vec<u32> = (0..examples as u32).collect();
            assert_eq!(flat(&in_file), all);
            for batches in [epoch_batches(&corpus, batch_size, 1, 0), in_file, by_length] {
                let mut sorted = flat(&batches);
                sorted.sort_unstable();
                assert_eq!(sorted, all);
                assert_eq!(batches.len(), examples.div_ceil(batch_size));
                let full = batches.iter().take(examples / batch_size);
                assert!(full.into_iter().all(|batch| batch.len() == batch_size));
            }
        }
    }
}

#[test]
fn the_order_is_that_of_seed_and_epoch() {
    let corpus = corpus(1000);
    let first = epoch_batches(&corpus, 8, 1, 0);
    assert_eq!(first, epoch_batches(&corpus, 8, 1, 0));
    for other in [epoch_batches(&corpus, 8, 1, 1), epoch_batches(&corpus, 8, 2, 0), epoch_batches(&corpus, 8, 0, 1)] {
        assert_ne!(flat(&first), flat(&other));
    }
    // Batches are not merely in another order: their members change.
    let mut members: Vec<Vec<u32>> = first.iter().map(<[u32]>::to_vec).collect();
    members.extend(epoch_batches(&corpus, 8, 1, 1).iter().map(<[u32]>::to_vec));
    members.iter_mut().for_each(|batch| batch.sort_unstable());
    members.sort();
    members.dedup();
    assert!(members.len() > 240, "{} of 250 batches differ", members.len());
}

#[test]
fn lengths_do_not_rise_through_an_epoch() {
    let corpus = corpus(2000);
    let lengths: Vec<usize> =
        epoch_batches(&corpus, 8, 1, 0).iter().map(|batch| corpus.example(batch[0] as usize).source.len()).collect();
    let mean = |part: &[usize]| part.iter().sum::<usize>() as f64 / part.len() as f64;
    let (first, second) = lengths.split_at(lengths.len() / 2);
    assert!((mean(first) - mean(second)).abs() < 8.0, "{} and {}", mean(first), mean(second));
}

#[test]
fn examples_of_like_length_share_a_batch() {
    let corpus = corpus(2000);
    let tokens: usize = (0..corpus.len()).map(|i| corpus.example(i).source.len()).sum();
    let waste = |batches: &Batches| padded(&corpus, batches) as f64 / tokens as f64 - 1.0;
    let in_file = waste(&sequential_batches(&corpus, 8, Order::File));
    let trained = waste(&epoch_batches(&corpus, 8, 1, 0));
    let by_length = waste(&sequential_batches(&corpus, 8, Order::Length));
    assert!(in_file > 0.5, "{in_file}");
    assert!(trained < 0.1, "{trained}");
    assert!(by_length < 0.02, "{by_length}");
}

fn small() -> Corpus {
    let rows = "{\"input_ids\": [5, 6, 1], \"labels\": [8, 9, 1]}\n{\"input_ids\": [7, 1], \"labels\": [4, 1]}\n";
    file("a.jsonl", rows).read_with(&Reading::default(), None).expect("two rows")
}

#[test]
fn a_batch_is_padded_to_its_longest_example() {
    let special = lstc_data::SpecialTokens { pad: 0, end: 1, start: 3 };
    let batch = Batch::new(&small(), &[1, 0], special, &Fixed::default()).expect("two examples");
    let expected = Batch {
        rows: vec![2, 1],
        source: array![[7, 1, 0], [5, 6, 1]],
        source_mask: array![[1, 1, 0], [1, 1, 1]],
        target_in: array![[3, 4, 0], [3, 8, 9]],
        target_mask: array![[1, 1, 0], [1, 1, 1]],
        labels: array![[4, 1, IGNORED], [8, 9, 1]],
        counted: 5,
        tokens: 10,
    };
    assert_eq!(batch, expected);
}

#[test]
fn a_fixed_shape_is_filled_up() {
    let fixed = Fixed { batch: Some(3), source: Some(4), target: Some(3) };
    let batch = Batch::new(&small(), &[1], SPECIAL, &fixed).expect("one example");
    let copies = |row: [i64; 4]| Array2::from_shape_fn((3, 4), |(_, column)| row[column]);
    assert_eq!(batch.rows, [2]);
    assert_eq!(batch.source, copies([7, 1, 0, 0]));
    assert_eq!(batch.source_mask, copies([1, 1, 0, 0]));
    assert_eq!(batch.target_in, array![[0, 4, 0], [0, 4, 0], [0, 4, 0]]);
    assert_eq!(batch.target_mask, array![[1, 1, 0], [1, 1, 0], [1, 1, 0]]);
    assert_eq!(batch.labels, array![[4, 1, IGNORED], [IGNORED; 3], [IGNORED; 3]]);
    assert_eq!((batch.counted, batch.tokens), (2, 4));
}

#[test]
fn what_does_not_fit_a_fixed_shape_is_refused() {
    let told = |indices: &[u32], fixed| {
        Batch::new(&small(), indices, SPECIAL, &fixed).expect_err("it does not fit").to_string()
    };
    let two = |fixed| told(&[0, 1], fixed);
    insta::assert_snapshot!(two(Fixed { batch: Some(1), ..Fixed::default() }), @"2 examples do not fit the model, whose shape is fixed at 1");
    insta::assert_snapshot!(two(Fixed { source: Some(2), ..Fixed::default() }), @"3 source tokens do not fit the model, whose shape is fixed at 2");
    insta::assert_snapshot!(two(Fixed { target: Some(2), ..Fixed::default() }), @"3 target tokens do not fit the model, whose shape is fixed at 2");
    insta::assert_snapshot!(told(&[], Fixed::default()), @"a batch of no examples");
}

#[test]
fn a_corpus_is_split_into_what_is_trained_on_and_what_is_held_out() {
    let rows = |corpus: &Corpus| (0..corpus.len()).map(|i| corpus.example(i).row).collect::<Vec<_>>();
    for (examples, share) in [(2, 0.01), (10, 0.5), (1000, 0.1), (1001, 0.37), (500, 0.99)] {
        let split = |seed| {
            let folder = tempfile::tempdir().expect("a temporary folder");
            corpus(examples).split(share, seed, false, folder.path()).expect("two parts")
        };
        let (rest, held_out) = split(1);
        assert_eq!(held_out.len(), ((examples as f64 * share).round() as usize).clamp(1, examples - 1));
        let mut all = [rows(&rest), rows(&held_out)].concat();
        assert!(rows(&rest).is_sorted() && rows(&held_out).is_sorted());
        all.sort_unstable();
        assert_eq!(all, (1..=examples as u64).collect::<Vec<_>>(), "each row once, in one of the two");
        let whole = corpus(examples);
        for part in [&rest, &held_out] {
            for example in (0..part.len()).map(|at| part.example(at)) {
                assert_eq!(example, whole.example(example.row as usize - 1));
            }
        }
        let (again, other) = (split(1), split(2));
        assert_eq!((again.0.sha256(), again.1.sha256()), (rest.sha256(), held_out.sha256()));
        assert!(examples < 100 || rows(&other.1) != rows(&held_out));
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let one = corpus(1).split(0.5, 0, false, folder.path()).expect_err("one row cannot be in both");
    assert!(one.to_string().contains("too few"), "{one}");
    // Each target is there once: none can be in both.
    let text = (0..8).map(|n| format!("{{\"input_ids\": [3, 1], \"labels\": [{}, 1]}}\n", 5 + n)).collect::<String>();
    let each = file("a.jsonl", text).read_with(&Reading::default(), None).expect("rows");
    let each = each.split(0.5, 0, true, folder.path()).expect_err("no label can be split");
    assert!(each.to_string().contains("a target of its own"), "{each}");
}
