use std::cell::{Cell, RefCell};
use std::fs;
use std::path::Path;
use std::process::Command;

use foretoken_data::{
    CorpusSource, Error, Manifest, PrepareOptions, Progress, Split, SplitFractions, open_split,
    prepare,
};

use crate::fixtures::{bpe_json, folder, module, options, run, tokenizer_of, write};

fn python(root: &Path, out: &Path) -> PrepareOptions {
    options(CorpusSource::PythonCode { root: root.to_path_buf() }, out)
}

fn fill(root: &Path, order: impl Iterator<Item = usize>) {
    for index in order {
        write(root, &format!("package_{}/part_{index}.py", index % 7), module(index, 4));
    }
}

/// Name and content of all shards, sorted.
fn shards(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut shards: Vec<(String, Vec<u8>)> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "tokens" || end == "documents"))
        .map(|path| {
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap())
        })
        .collect();
    shards.sort();
    shards
}

fn steps(options: &PrepareOptions) -> Vec<Progress> {
    let steps = RefCell::new(Vec::new());
    prepare(options, &|step| steps.borrow_mut().push(step)).unwrap();
    steps.into_inner()
}

#[test]
fn shards_depend_on_neither_threads_nor_the_order_of_files() {
    let (first, second) = (folder(), folder());
    fill(first.path(), 0..250);
    fill(second.path(), (0..250).rev());
    let prepared =
        [(first.path(), 1), (second.path(), 1), (second.path(), 4)].map(|(root, threads)| {
            let out = folder();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let manifest = pool.install(|| run(&python(root, out.path()))).unwrap();
            (manifest.sha256, manifest.source.sha256, manifest.splits, shards(out.path()))
        });
    assert!(prepared[0] == prepared[1]);
    assert!(prepared[1] == prepared[2]);
}

#[test]
fn the_corpus_hash_depends_on_neither_tokenizer_nor_split() {
    let root = folder();
    fill(root.path(), 0..20);
    let hash = |change: &dyn Fn(&mut PrepareOptions)| {
        let out = folder();
        let mut options = python(root.path(), out.path());
        change(&mut options);
        run(&options).unwrap().sha256
    };
    let plain = hash(&|_| {});
    assert_eq!(plain, hash(&|options| options.tokenizer = tokenizer_of(&bpe_json())));
    assert_eq!(plain, hash(&|options| options.split = SplitFractions::all_test()));
    fs::remove_file(root.path().join("package_3/part_3.py")).unwrap();
    assert_ne!(plain, hash(&|_| {}));
}

#[test]
fn a_complete_folder_is_used_again_and_one_of_other_content_is_made_anew() {
    let (root, out) = (folder(), folder());
    fill(root.path(), 0..30);
    let options = python(root.path(), out.path());
    assert!(steps(&options).contains(&Progress::Finished));
    assert!(steps(&options).contains(&Progress::Reused));

    write(root.path(), "package_0/part_0.py", module(999, 4));
    assert!(!steps(&options).contains(&Progress::Reused));
    assert!(steps(&options).contains(&Progress::Reused));

    let other_split = PrepareOptions { split: SplitFractions::all_test(), ..options.clone() };
    assert!(!steps(&other_split).contains(&Progress::Reused));
    let other_tokenizer = PrepareOptions { tokenizer: tokenizer_of(&bpe_json()), ..other_split };
    assert!(!steps(&other_tokenizer).contains(&Progress::Reused));
    assert_eq!(shards(out.path()).len(), 6, "former shards are gone");
}

#[test]
fn damaged_shards_are_refused_and_made_anew_once_they_are_deleted() {
    let (root, out) = (folder(), folder());
    fill(root.path(), 0..30);
    let options = python(root.path(), out.path());
    let manifest = run(&options).unwrap();
    let good = shards(out.path());
    let shard = out.path().join(&manifest.splits.train.file);
    let mut content = fs::read(&shard).unwrap();
    content[100] ^= 1;
    for damaged in [content.as_slice(), &content[..50]] {
        fs::write(&shard, damaged).unwrap();
        let message = run(&options).unwrap_err().to_string();
        assert!(message.contains(&manifest.splits.train.file), "{message}");
        assert!(message.contains("delete it"), "{message}");
        fs::remove_file(&shard).unwrap();
        assert!(!steps(&options).contains(&Progress::Reused));
        assert!(shards(out.path()) == good);
    }
    fs::write(out.path().join("manifest.json"), "{").unwrap();
    assert!(!steps(&options).contains(&Progress::Reused));
    assert_eq!(Manifest::read(out.path()).unwrap(), manifest);
}

#[test]
fn files_of_others_in_the_shard_folder_are_left_alone() {
    let (root, out) = (folder(), folder());
    fill(root.path(), 0..5);
    let own = ["notes.txt", "training.md", "words.tokens", "train/data.tokens"];
    for name in own {
        write(out.path(), name, "mine");
    }
    let mut options = python(root.path(), out.path());
    run(&options).unwrap();
    options.split = SplitFractions::all_test();
    run(&options).unwrap();
    for name in own {
        assert_eq!(fs::read_to_string(out.path().join(name)).unwrap(), "mine");
    }
}

#[test]
fn an_open_shard_outlives_a_new_preparation_of_its_folder() {
    let (root, out) = (folder(), folder());
    fill(root.path(), 0..5);
    let options = python(root.path(), out.path());
    run(&options).unwrap();
    let shard = open_split(out.path(), Split::Train).unwrap();
    let before = shard.tokens(0..shard.len()).unwrap();
    fill(root.path(), 5..10);
    run(&options).unwrap();
    assert!(shard.tokens(0..shard.len()).unwrap() == before);
    shard.verify().unwrap();
}

/// Not a test of its own: the process that the next two start and stop. It gives up at the
/// `FORETOKEN_TEST_ABORT_AT`th step, or prints why it failed.
#[test]
fn a_preparation_in_a_process_of_its_own() {
    let (Some(root), Some(out)) =
        (std::env::var_os("FORETOKEN_TEST_ROOT"), std::env::var_os("FORETOKEN_TEST_OUT"))
    else {
        return;
    };
    let abort_at =
        std::env::var("FORETOKEN_TEST_ABORT_AT").map_or(u32::MAX, |at| at.parse().unwrap());
    let step = Cell::new(0);
    let prepared = prepare(&python(root.as_ref(), out.as_ref()), &|_| {
        if step.get() == abort_at {
            std::process::abort();
        }
        step.set(step.get() + 1);
    });
    if let Err(error) = prepared {
        println!("\nfailed: {error}");
    }
}

/// That process, with commands of the shell before it.
fn child(root: &Path, out: &Path, before: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("{before} exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "preparation::a_preparation_in_a_process_of_its_own", "--nocapture"])
        .env("FORETOKEN_TEST_ROOT", root)
        .env("FORETOKEN_TEST_OUT", out);
    command
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_killed_preparation_leaves_nothing_that_is_trusted_and_nothing_behind() {
    let (root, out) = (folder(), folder());
    fill(root.path(), 0..40);
    let kill = |at: u32| {
        let mut child = child(root.path(), out.path(), "");
        let status = child.env("FORETOKEN_TEST_ABORT_AT", at.to_string()).output().unwrap().status;
        assert!(!status.success(), "the process was not killed at {at}");
    };
    // Before and after scanning, before and after tokenizing.
    for at in 0..4 {
        kill(at);
        assert!(matches!(open_split(out.path(), Split::Train), Err(Error::NotPrepared { .. })));
    }
    assert!(names(out.path()).iter().any(|name| name.ends_with(".partial")));

    let options = python(root.path(), out.path());
    let manifest = run(&options).unwrap();
    let fresh = folder();
    run(&python(root.path(), fresh.path())).unwrap();
    assert_eq!(names(out.path()), names(fresh.path()));
    assert!(shards(out.path()) == shards(fresh.path()));

    // Killed while making it anew for other content: the former shards stay valid.
    fill(root.path(), 40..50);
    kill(3);
    assert_eq!(Manifest::read(out.path()).unwrap(), manifest);
    open_split(out.path(), Split::Train).unwrap().verify().unwrap();
}

#[test]
fn a_disk_that_takes_no_more_is_reported_and_leaves_nothing_behind() {
    let (root, out) = (folder(), folder());
    fill(root.path(), 0..40);
    // A limit on the size of files stands for the full disk.
    let output = child(root.path(), out.path(), "trap '' XFSZ; ulimit -f 8;").output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let message = printed.lines().find(|line| line.starts_with("failed: ")).unwrap_or(&printed);
    let expected = format!("failed: cannot write {}/train.tokens: ", out.path().display());
    assert!(message.starts_with(&expected), "{message}");
    assert_eq!(names(out.path()), [".lock"]);
}

#[test]
fn two_preparations_of_one_folder_at_once_give_one_good_folder() {
    let (root, out) = (folder(), folder());
    fill(root.path(), 0..60);
    let manifests: Vec<Manifest> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| run(&python(root.path(), out.path())).unwrap()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(manifests.iter().all(|manifest| *manifest == manifests[0]));
    for split in Split::ALL {
        open_split(out.path(), split).unwrap().verify().unwrap();
    }
    let alone = folder();
    assert_eq!(manifests[0].splits, run(&python(root.path(), alone.path())).unwrap().splits);
}
