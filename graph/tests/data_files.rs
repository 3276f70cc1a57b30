//! Data files: linked where they can be, shared, copied; and mapped weights that give their memory back.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use lstc_graph::{
    DataFiles, DataWriter, Graph, Links, Means, Saved, Weight, copy_data, data_to_run, encode, load, parse, print,
};

const ELEMENTS: usize = 4096;

/// A graph that gives out some weights by name, each full of one number.
fn graph(weights: &[(&str, f32)]) -> Graph {
    let mut graph = parse("(x: f32[B, 4]) {\n y = Neg(x)\n}", 17).unwrap_or_else(|e| panic!("{e}"));
    for (name, value) in weights {
        let weight = graph.add_weight(name, Weight::from_f32(&[ELEMENTS], &[*value; ELEMENTS]));
        graph.outputs.push(weight);
    }
    graph
}

/// A model in `folder` whose weights `a` and `b` lie in a data file each.
fn in_two_files(folder: &Path) -> Graph {
    let (a, b) = (graph(&[("a", 1.0)]), graph(&[("b", 2.0)]));
    for (graph, name) in [(&a, "a"), (&b, "b")] {
        let (data, _) = copy_data(&[graph], folder, &format!("{name}.bin")).expect("it can be written");
        fs::write(folder.join(format!("{name}.onnx")), encode(graph, &data)).expect("it can be written");
    }
    let mut both = load(&folder.join("a.onnx")).unwrap_or_else(|e| panic!("{e}"));
    let b = load(&folder.join("b.onnx")).unwrap_or_else(|e| panic!("{e}"));
    let weight = both.add_weight("b", weight(&b, "b").clone());
    both.outputs.push(weight);
    both
}

fn weight<'g>(graph: &'g Graph, name: &str) -> &'g Weight {
    graph.find(name).and_then(|v| graph.weight(v)).expect("a weight")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Links the data files of a graph's weights in `folder`, and copies what lies in none.
fn write_data(graph: &Graph, folder: &Path) -> io::Result<(DataFiles, Vec<Saved>)> {
    let graphs = [graph];
    let mut writer = DataWriter::new(&graphs, folder, "w.data");
    writer.link(Links::HardLinks)?;
    writer.copy(&mut |_| ())
}

fn names(saved: &[Saved]) -> Vec<(&str, &'static str)> {
    let how = |s: &Saved| match s.means {
        Means::Linked(_) => "linked",
        Means::Reflinked(_) => "reflinked",
        Means::Copied => "copied",
    };
    saved.iter().map(|s| (s.name.as_str(), how(s))).collect()
}

#[test]
fn each_data_file_is_linked_and_what_lies_in_none_is_copied() {
    let (source, tuned) = (folder(), folder());
    let mut model = in_two_files(source.path());
    let (_, saved) = write_data(&model, folder().path()).expect("it can be written");
    assert_eq!(names(&saved), [("w.data", "linked"), ("w.1.data", "linked")]);

    let made = model.add_weight("made", Weight::from_f32(&[ELEMENTS], &[3.0; ELEMENTS]));
    model.outputs.push(made);
    let (data, saved) = write_data(&model, tuned.path()).expect("it can be written");
    assert_eq!(names(&saved), [("w.data", "linked"), ("w.1.data", "linked"), ("w.2.data", "copied")]);
    for (link, file) in [("w.data", "a.bin"), ("w.1.data", "b.bin")] {
        let inode = |path: &Path| fs::metadata(path).expect("it is there").ino();
        assert_eq!(inode(&tuned.path().join(link)), inode(&source.path().join(file)));
    }
    let file = tuned.path().join("model.onnx");
    fs::write(&file, encode(&model, &data)).expect("it can be written");
    let again = load(&file).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(print(&again), print(&model));

    // Written again beside its files, it refers to each.
    fs::write(&file, encode(&again, &DataFiles::of(&again, tuned.path()))).expect("it can be written");
    assert!(fs::metadata(&file).expect("it was written").len() < 4096, "nothing is embedded");
    let third = load(&file).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(print(&third), print(&model));
}

#[test]
fn a_copy_is_linked_by_whoever_shares_it() {
    let (first, second) = (folder(), folder());
    let model = graph(&[("a", 1.0), ("b", 2.0)]);
    let (data, saved) = write_data(&model, first.path()).expect("it can be written");
    assert_eq!(names(&saved), [("w.data", "copied")]);
    fs::write(first.path().join("model.onnx"), encode(&model, &data)).expect("it can be written");
    let shared = [load(&first.path().join("model.onnx")).unwrap_or_else(|e| panic!("{e}"))];

    // The other graph has a weight more.
    let more = graph(&[("a", 1.0), ("b", 2.0), ("c", 3.0)]);
    let graphs = [&more];
    let mut writer = DataWriter::new(&graphs, second.path(), "w.data");
    assert_eq!(writer.share(&shared, Links::HardLinks).expect("they are equal"), 1);
    assert!(writer.is_incomplete());
    let (data, saved) = writer.copy(&mut |_| ()).expect("it can be written");
    assert_eq!(names(&saved), [("w.data", "linked"), ("w.1.data", "copied")]);
    let file = second.path().join("model.onnx");
    fs::write(&file, encode(&more, &data)).expect("it can be written");
    assert_eq!(print(&load(&file).unwrap_or_else(|e| panic!("{e}"))), print(&more));

    let third = folder();
    let other = graph(&[("a", 1.0), ("b", 2.5)]);
    let graphs = [&other];
    let refused = DataWriter::new(&graphs, third.path(), "w.data").share(&shared, Links::HardLinks);
    assert!(refused.is_err_and(|e| e.to_string().contains("`b`")));
    assert_eq!(fs::read_dir(third.path()).expect("a folder").count(), 0);
}

#[test]
fn a_file_keeps_its_one_name_unless_hard_links_are_asked_for() {
    let (source, tuned) = (folder(), folder());
    let model = in_two_files(source.path());
    let graphs = [&model];
    let mut writer = DataWriter::new(&graphs, tuned.path(), "w.data");
    writer.link(Links::Reflinks).expect("it can be written");
    let (total, linkable) = writer.left();
    assert_eq!(total, linkable, "all weights lie in data files");
    let mut seen = Vec::new();
    let (data, saved) = writer.copy(&mut |bytes| seen.extend_from_slice(bytes)).expect("it can be written");
    for file in ["a.bin", "b.bin"].map(|name| source.path().join(name)) {
        assert_eq!(fs::metadata(file).expect("it is there").nlink(), 1);
    }
    let copied = saved.iter().find(|s| s.means == Means::Copied);
    if let Some(copied) = copied {
        assert!(
            seen == fs::read(tuned.path().join(&copied.name)).expect("it is there"),
            "all bytes are seen, in order"
        );
    }
    let file = tuned.path().join("model.onnx");
    fs::write(&file, encode(&model, &data)).expect("it can be written");
    assert_eq!(print(&load(&file).unwrap_or_else(|e| panic!("{e}"))), print(&model));
}

#[test]
fn weights_are_run_from_where_they_lie() {
    let (source, scratch) = (folder(), folder());
    let mut model = in_two_files(source.path());
    let files = || fs::read_dir(scratch.path()).expect("a folder").count();
    let check = |model: &Graph| {
        let (data, folder) = data_to_run(&[model], scratch.path()).expect("it can be written");
        let bytes = encode(model, &data);
        assert!(bytes.len() < 4096, "nothing is embedded");
        let file = folder.join("run.onnx");
        fs::write(&file, bytes).expect("it can be written");
        assert_eq!(print(&load(&file).unwrap_or_else(|e| panic!("{e}"))), print(model));
        folder
    };
    assert_eq!(check(&model), source.path().canonicalize().expect("it is there"));
    assert_eq!(files(), 0);

    // One weight more, which lies nowhere: all of them go to the scratch folder.
    let made = model.add_weight("made", Weight::from_f32(&[ELEMENTS], &[3.0; ELEMENTS]));
    model.outputs.push(made);
    assert_eq!(check(&model), scratch.path());
    for name in ["a.bin", "b.bin"] {
        assert_eq!(fs::metadata(source.path().join(name)).expect("it is there").nlink(), 1);
    }
}

#[test]
fn a_copy_keeps_holes_and_is_no_wider_than_its_source() {
    const LARGE: usize = 16 << 20;
    let (source, tuned) = (folder(), folder());
    let mut model = graph(&[]);
    let value = model.add_weight("large", Weight::from_f32(&[LARGE], &vec![0.5; LARGE]));
    model.outputs.push(value);
    let (data, _) = copy_data(&[&model], source.path(), "a.bin").expect("it can be written");
    fs::write(source.path().join("a.onnx"), encode(&model, &data)).expect("it can be written");
    // All but some numbers in its middle are a hole.
    let file = fs::File::create(source.path().join("a.bin")).expect("it can be written");
    file.set_len(LARGE as u64 * 4).and_then(|()| file.write_all_at(&[1; 4096], 32 << 20)).expect("it can be written");
    file.set_permissions(fs::Permissions::from_mode(0o600)).expect("it is ours");

    let sparse = load(&source.path().join("a.onnx")).unwrap_or_else(|e| panic!("{e}"));
    let (mut bytes, graphs) = (0, [&sparse]);
    let (_, saved) = DataWriter::new(&graphs, tuned.path(), "w.data").copy(&mut |b| bytes += b.len()).expect("a copy");
    let copy = tuned.path().join("w.data");
    let metadata = fs::metadata(&copy).expect("it is there");
    assert_eq!([metadata.len(), bytes as u64, saved[0].bytes], [LARGE as u64 * 4; 3]);
    assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert!(fs::read(copy).expect("it is there") == fs::read(source.path().join("a.bin")).expect("it is there"));
}

#[test]
fn a_name_that_is_there_is_not_written_through() {
    let (source, tuned) = (folder(), folder());
    let model = in_two_files(source.path());
    let taken = tuned.path().join("w.data");
    fs::write(&taken, "mine").expect("it can be written");
    assert!(write_data(&model, tuned.path()).is_err());
    assert!(write_data(&graph(&[("a", 1.0)]), tuned.path()).is_err());
    assert_eq!(fs::read(&taken).expect("it is there"), b"mine");
}

/// Bytes of file pages that this process has resident.
fn file_pages() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|l| l.strip_prefix("RssFile:")).expect("Linux 4.5 or later");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
}

#[test]
fn a_released_weight_takes_no_memory_and_reads_the_same() {
    const LARGE: usize = 16 << 20;
    let folder = folder();
    let mut large = graph(&[]);
    let value = large.add_weight("large", Weight::from_f32(&[LARGE], &vec![0.5; LARGE]));
    large.outputs.push(value);
    large.add_weight("memory", Weight::from_f32(&[2], &[1.0, 2.0]));
    weight(&large, "large").release();
    weight(&large, "memory").release();
    assert_eq!(weight(&large, "memory").to_f32(), Some(vec![1.0, 2.0]));
    let (data, _) = copy_data(&[&large], folder.path(), "w.data").expect("it can be written");
    fs::write(folder.path().join("model.onnx"), encode(&large, &data)).expect("it can be written");

    let again = load(&folder.path().join("model.onnx")).unwrap_or_else(|e| panic!("{e}"));
    let mapped = weight(&again, "large");
    assert_eq!(mapped, weight(&large, "large"));
    let read = file_pages();
    mapped.release();
    let released = file_pages();
    assert!(released + (LARGE as u64 * 4) * 9 / 10 < read, "{read} bytes, then {released}");
    assert_eq!(mapped, weight(&large, "large"));
}
