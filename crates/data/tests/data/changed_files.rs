//! Shards that another program works on while they are in use.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use foretoken_data::{
    BatchSampler, Batches, CorpusSource, Error, Mixture, Prefetch, SamplerOptions, Split,
    SplitFractions, open_split,
};
use tempfile::TempDir;

use crate::fixtures::{folder, module, options, run, write};

/// A source that reads a shard, the shard's two files, and the folder that they lie in.
struct InUse {
    _folder: TempDir,
    source: Arc<dyn Batches>,
    tokens: PathBuf,
    documents: PathBuf,
}

fn in_use(mixed: bool) -> InUse {
    let root = folder();
    let path = write(root.path(), "a.txt", module(1, 400));
    let out = root.path().join("shards");
    let mut options = options(CorpusSource::Path(path), &out);
    options.split = SplitFractions::all_train();
    let info = run(&options).unwrap().splits.train;
    let shard = open_split(&out, Split::Train).unwrap();
    let options = SamplerOptions { batch: 4, columns: 50, seed: 1 };
    let sampler = BatchSampler::new(shard, options).unwrap();
    let source: Arc<dyn Batches> = if mixed {
        Arc::new(Mixture::new(vec![(sampler.clone(), 1.0), (sampler, 2.0)]).unwrap())
    } else {
        Arc::new(sampler)
    };
    source.batch(0).unwrap();
    let (tokens, documents) = (out.join(info.file), out.join(info.documents_file));
    InUse { _folder: root, source, tokens, documents }
}

/// Gives a file a time of writing that no clock's coarseness hides.
fn touch(path: &Path) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(10)).unwrap();
}

#[test]
fn a_file_that_is_cut_short_or_grows_is_an_error_that_names_it_not_the_end_of_the_process() {
    let changes: [fn(u64) -> u64; 3] = [|length| length / 3, |_| 0, |length| length + 2];
    for mixed in [false, true] {
        for change in changes {
            for documents in [false, true] {
                let used = in_use(mixed);
                let path = if documents { &used.documents } else { &used.tokens };
                let length = fs::metadata(path).unwrap().len();
                let file = File::options().write(true).open(path).unwrap();
                file.set_len(change(length)).unwrap();
                let error = used.source.batch(1).unwrap_err();
                assert!(
                    matches!(&error, Error::ShardChanged { path: named, expected, found }
                        if named == path && *expected == length && *found == change(length)),
                    "{error}"
                );
                let message = error.to_string();
                assert!(message.starts_with(&path.display().to_string()), "{message}");
                assert!(message.ends_with("delete its folder and go on with --resume"));
            }
        }
    }
}

#[test]
fn a_batch_read_ahead_says_so_at_its_step() {
    let used = in_use(false);
    let mut batches = Prefetch::new(Arc::clone(&used.source), 0.., 0..4, 1).unwrap();
    batches.next().unwrap().unwrap();
    // Until the thread waits with the second batch in its hands and reads nothing.
    std::thread::sleep(Duration::from_millis(200));
    File::options().write(true).open(&used.tokens).unwrap().set_len(10).unwrap();
    batches.next().unwrap().unwrap();
    let error = batches.next().unwrap().unwrap_err();
    assert!(matches!(error, Error::ShardChanged { .. }), "{error}");
}

#[test]
fn a_removed_shard_and_one_that_is_prepared_anew_go_on() {
    let used = in_use(true);
    let direct = used.source.batch(7).unwrap();
    fs::remove_file(&used.tokens).unwrap();
    fs::remove_file(&used.documents).unwrap();
    assert_eq!(used.source.batch(7).unwrap(), direct);
    fs::write(&used.tokens, "another file of that name").unwrap();
    assert_eq!(used.source.batch(7).unwrap(), direct);
}

#[test]
fn a_file_that_was_only_touched_goes_on_and_one_with_other_content_does_not() {
    let used = in_use(false);
    let direct = used.source.batch(7).unwrap();
    touch(&used.tokens);
    touch(&used.documents);
    assert_eq!(used.source.batch(7).unwrap(), direct);

    let mut content = fs::read(&used.tokens).unwrap();
    content[100] ^= 1;
    fs::write(&used.tokens, &content).unwrap();
    touch(&used.tokens);
    let error = used.source.batch(7).unwrap_err();
    assert!(matches!(&error, Error::ShardChecksum { path } if *path == used.tokens), "{error}");
    // It stays refused until it is what it was.
    assert!(used.source.batch(8).is_err());
    content[100] ^= 1;
    fs::write(&used.tokens, &content).unwrap();
    touch(&used.tokens);
    assert_eq!(used.source.batch(7).unwrap(), direct);
}
