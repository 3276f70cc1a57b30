//! The fence around the shape library: a panic inside it prints nothing and yields no answer; one elsewhere is printed, on
//! every thread, before and after. Alone in its process, because the hook is the process's.

use std::sync::atomic::{AtomicUsize, Ordering};

use lstc_graph::parse;

static MESSAGES: AtomicUsize = AtomicUsize::new(0);

/// The library adds i32s: this sum overflows.
const OVERFLOW: &str = "(x: f32[2]) {
    a = const i64[] {2147483647}
    y = Add(a, a)
    z = Relu(x)
}";

#[test]
fn a_fenced_panic_is_silent_and_no_other_is() {
    const THREADS: usize = 8;
    const ROUNDS: usize = 50;
    std::panic::set_hook(Box::new(|_| {
        MESSAGES.fetch_add(1, Ordering::SeqCst);
    }));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            std::thread::spawn(|| {
                for _ in 0..ROUNDS {
                    let graph = parse(OVERFLOW, 17).unwrap_or_else(|e| panic!("{e}"));
                    let shape = |name| graph.shape(graph.find(name).expect("the value has its name"));
                    assert!(shape("y").is_none(), "the sum must not be known: {:?}", shape("y"));
                    assert!(shape("z").is_some(), "what follows is inferred all the same");
                    assert!(std::panic::catch_unwind(|| panic!("a panic elsewhere")).is_err());
                }
            })
        })
        .collect();
    let finished = threads.into_iter().map(std::thread::JoinHandle::join).filter(Result::is_ok).count();
    let messages = MESSAGES.load(Ordering::SeqCst);
    let _ = std::panic::take_hook();
    println!("{finished} threads, {} fenced panics, {messages} messages of other panics", THREADS * ROUNDS);
    assert_eq!((finished, messages), (THREADS, THREADS * ROUNDS));
}
