fn main() {
    let path = std::env::args().nth(1).unwrap();
    match lstc_graph::load(path.as_ref()) {
        Err(e) => println!("{e}"),
        Ok(g) => {
            for id in g.node_ids() {
                let n = g.node(id);
                let outs: Vec<String> = n
                    .outputs
                    .iter()
                    .flatten()
                    .map(|v| {
                        format!(
                            "{} {} {}",
                            g.value(*v).name,
                            g.value(*v).dtype.map_or("?", |d| d.name()),
                            g.shape(*v).map_or("?".into(), |s| lstc_graph::shape_text(&s))
                        )
                    })
                    .collect();
                println!("{} -> {}", n.op, outs.join(", "));
            }
            println!("{:?}", lstc_graph::verify(&g));
        }
    }
}
