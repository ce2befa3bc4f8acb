//! Heads on a pretrained model: how they start, their file, their draft vocabulary, and published
//! folders of other makers.

use foretoken_heads::{
    HeadsConfig, ModelConfig, ModelPieces, ModelSource, MultiTokenModel, Piece, Registry, Result,
    Tap, UnreadModel,
};
use foretoken_trunk::io::{read_safetensors, write_safetensors, write_safetensors_with};
use foretoken_trunk::{Architecture, RopeScaling};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use tch::{Device, Kind, Tensor, no_grad};

/// Weights come from libtorch's one generator, so tests that make the same model twice take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn stock(change: impl Fn(&mut Architecture)) -> MultiTokenModel {
    let mut architecture = Architecture {
        vocab: 40,
        dim: 24,
        layers: 3,
        kv_heads: 2,
        head_dim: 6,
        ffn: 40,
        context: 32,
        ..Architecture::default()
    };
    change(&mut architecture);
    let heads = HeadsConfig::new("block", 1);
    let config = ModelConfig { architecture, heads, end_of_text: vec![39] };
    MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 5).unwrap()
}

fn grown(kind: &str, count: usize) -> MultiTokenModel {
    let heads = HeadsConfig::new(kind, count);
    stock(|_| ()).grow(&heads, &Registry::stock(), 1).unwrap()
}

fn logits(model: &MultiTokenModel, head: usize) -> Tensor {
    let tokens = Tensor::arange(12, (Kind::Int64, Device::Cpu)).view([2, 6]);
    model.logits(head, &model.hidden(&tokens).unwrap()).unwrap()
}

fn load(folder: &Path) -> Result<MultiTokenModel> {
    MultiTokenModel::load(folder, Kind::Float, Device::Cpu)
}

fn config_of(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

fn write_config(folder: &Path, config: &Value) {
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

/// Moves a head away from where it started.
fn train_a_little(model: &MultiTokenModel) {
    for parameter in model.head_parameters() {
        no_grad(|| {
            let noise = parameter.tensor.randn_like() * 0.1;
            _ = parameter.tensor.shallow_clone().g_add_(&noise);
        });
    }
}

#[test]
fn new_heads_start_out_as_the_models_own_and_leave_it_as_it_is() {
    let _turn = turn();
    let before = logits(&stock(|_| ()), 0);
    for (kind, layers) in [("block", 5), ("medusa", 3), ("linear", 3)] {
        let model = grown(kind, 3);
        assert_eq!(model.config().architecture.layers, layers, "{kind}");
        assert_eq!(logits(&model, 0), before, "{kind}");
        for head in 1..3 {
            let difference = (logits(&model, head) - &before).abs().max().double_value(&[]);
            assert!(difference < 1e-5, "{kind} {head}: {difference}");
        }
        let tap = model.head(1).unwrap().tap();
        assert_eq!(tap == Tap::TrunkOutput, kind == "block");
        assert_eq!(model.head(1).unwrap().as_dense().is_some(), kind != "block");
    }
}

#[test]
fn heads_are_joined_to_the_model_that_they_were_trained_on_and_to_no_other() {
    let _turn = turn();
    for kind in ["block", "medusa", "linear"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("heads.safetensors");
        let mut model = grown(kind, 3);
        train_a_little(&model);
        model.set_draft_vocabulary(Some(vec![7, 3, 3, 20])).unwrap();
        model.save_heads(&path).unwrap();

        let joined = stock(|_| ()).with_heads(&path, &Registry::stock()).unwrap();
        assert_eq!(joined.config(), model.config());
        for head in 0..3 {
            assert_eq!(logits(&joined, head), logits(&model, head));
        }
        assert_eq!(joined.draft_vocabulary().unwrap().tokens(), [3, 7, 20]);
        // A folder that has such a file will do.
        stock(|_| ()).with_heads(folder.path(), &Registry::stock()).unwrap();

        let other = stock(|_| ());
        no_grad(|| _ = other.final_norm().shallow_clone().g_mul_scalar_(1.5));
        let error = other.with_heads(&path, &Registry::stock()).unwrap_err().to_string();
        assert!(error.contains("another model") && error.contains("heads.safetensors"), "{error}");
    }
}

#[test]
fn heads_for_a_model_of_other_sizes_are_said_to_be_that() {
    let _turn = turn();
    for kind in ["block", "informed", "medusa", "linear"] {
        let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let [heads, wider, larger] = folders.each_ref().map(tempfile::TempDir::path);
        grown(kind, 3).save(heads).unwrap();
        stock(|sizes| sizes.dim = 28).save(wider).unwrap();
        stock(|sizes| sizes.dim = 96).save(larger).unwrap();
        for (model, words) in [(wider, "a model of other sizes"), (larger, "for a smaller one")] {
            let joined = unread(model, Some(heads)).and_then(UnreadModel::read);
            let error = joined.unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("heads.safetensors"), "{error}");
        }
    }
}

/// The model in `folder`, not yet read, with the heads of a file.
fn unread(folder: &Path, heads: Option<&Path>) -> Result<UnreadModel> {
    let model = ModelSource::open(folder)?.unread(Kind::Float, Device::Cpu)?;
    match heads {
        None => Ok(model),
        Some(path) => model.with_heads(path, &Registry::stock()),
    }
}

/// All weights of a model that is read piece by piece, as [`MultiTokenModel::parameters`] has them.
fn weights_in_turn(model: UnreadModel) -> Result<Vec<Tensor>> {
    let ModelPieces { embedding, final_norm, unembedding, rest, config, .. } = model.pieces()?;
    let (mut weights, mut layer, mut beyond) = (vec![embedding], Vec::new(), Vec::new());
    let readout = [Some(final_norm), (!config.architecture.tied).then_some(unembedding)];
    for piece in rest {
        let (into, parameters) = match piece? {
            Piece::Block(block) => (&mut weights, block.parameters("")),
            Piece::Head(head) if layer.is_empty() => (&mut layer, head.parameters("")),
            Piece::Head(head) => (&mut beyond, head.parameters("")),
        };
        into.extend(parameters.into_iter().map(|parameter| parameter.tensor));
    }
    Ok(weights
        .into_iter()
        .chain(layer)
        .chain(readout.into_iter().flatten())
        .chain(beyond)
        .collect())
}

#[test]
fn a_model_that_is_read_in_turn_is_the_one_that_is_read_at_once() {
    let _turn = turn();
    for (kind, tied) in [("block", true), ("informed", false), ("medusa", true), ("linear", false)]
    {
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [whole, apart] = folders.each_ref().map(tempfile::TempDir::path);
        let base = || stock(|sizes| sizes.tied = tied);
        let heads = HeadsConfig::new(kind, 3);
        let mut model = base().grow(&heads, &Registry::stock(), 1).unwrap();
        train_a_little(&model);
        model.set_draft_vocabulary(Some(vec![7, 3, 20])).unwrap();
        model.save(whole).unwrap();
        base().save(apart).unwrap();
        for (folder, file) in [(whole, None), (apart, Some(whole)), (whole, Some(whole))] {
            let read = unread(folder, file).unwrap().read().unwrap();
            let in_turn = weights_in_turn(unread(folder, file).unwrap()).unwrap();
            let parameters = model.parameters();
            assert_eq!(
                (read.parameters().len(), in_turn.len()),
                (parameters.len(), parameters.len())
            );
            for ((expected, read), in_turn) in parameters.iter().zip(read.parameters()).zip(in_turn)
            {
                assert_eq!(expected.tensor, read.tensor);
                assert_eq!(expected.tensor, in_turn);
            }
            let pieces = unread(folder, file).unwrap().pieces().unwrap();
            let found = pieces.draft_vocabulary.unwrap();
            let expected = model.draft_vocabulary().unwrap();
            assert_eq!(found.tokens(), expected.tokens());
            assert_eq!(found.unembedding(), expected.unembedding());
        }
    }
}

#[test]
fn what_does_not_belong_together_is_found_out_while_it_is_read_in_turn() {
    let _turn = turn();
    for tied in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let base = || stock(|sizes| sizes.tied = tied);
        let heads = folder.path().join("heads.safetensors");
        let model = base().grow(&HeadsConfig::new("block", 2), &Registry::stock(), 1).unwrap();
        model.save_heads(&heads).unwrap();
        // Another number anywhere in the stock part makes it another model.
        let count = base().parameters().len();
        for changed in 0..count {
            let other = base();
            let tensor = other.parameters()[changed].tensor.detach().view([-1]);
            no_grad(|| _ = tensor.get(tensor.size()[0] - 1).g_add_scalar_(0.25));
            let path = folder.path().join(format!("{changed}"));
            other.save(&path).unwrap();
            assert!(weights_in_turn(unread(&path, None).unwrap()).is_ok());
            for error in [
                unread(&path, Some(&heads)).unwrap().read().map(|_| ()).unwrap_err(),
                weights_in_turn(unread(&path, Some(&heads)).unwrap()).map(|_| ()).unwrap_err(),
            ] {
                let error = error.to_string();
                assert!(error.contains("another model"), "{changed} of {count}: {error}");
            }
            // Who wants to be told instead is, and gets them.
            let (tell, told) = std::sync::mpsc::channel();
            let tolerant = unread(&path, Some(&heads)).unwrap();
            let tolerant = tolerant.tolerate_other_trunks(move |problem| {
                tell.send(problem.to_owned()).unwrap();
            });
            let read = weights_in_turn(tolerant).unwrap();
            assert_eq!(read[count], model.parameters()[count].tensor);
            assert!(told.try_recv().unwrap().contains("another model"));
        }
        let own = folder.path().join("own");
        base().save(&own).unwrap();
        let silent = unread(&own, Some(&heads)).unwrap();
        let silent = silent.tolerate_other_trunks(|problem| panic!("{problem}"));
        weights_in_turn(silent).unwrap();
        // A tensor too many, with and without heads of another file.
        let path = folder.path().join("0");
        let stored = path.join("model.safetensors");
        let mut tensors = read_safetensors(&stored).unwrap();
        tensors.push((
            "model.layers.9.odd.weight".to_owned(),
            Tensor::ones([2], (Kind::Float, Device::Cpu)),
        ));
        write_safetensors(&stored, &tensors).unwrap();
        for file in [None, Some(heads.as_path())] {
            // It is found before anything is read.
            let error = unread(&path, file).unwrap().pieces().unwrap_err().to_string();
            assert!(error.contains("model.layers.9.odd.weight"), "{error}");
        }
    }
}

#[test]
fn all_tokens_that_end_a_text_are_read_and_written() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    stock(|_| ()).save(folder).unwrap();
    assert_eq!(config_of(folder)["eos_token_id"], 39);
    assert_eq!(config_of(folder)["bos_token_id"], Value::Null);
    let mut config = config_of(folder);
    config["eos_token_id"] = json!([3, 7]);
    write_config(folder, &config);
    assert_eq!(load(folder).unwrap().config().end_of_text, [3, 7]);
    // What ends a turn may be in the config of generation alone.
    let generation = folder.join("generation_config.json");
    fs::write(&generation, r#"{"eos_token_id": [7, 12], "do_sample": true}"#).unwrap();
    let model = load(folder).unwrap();
    assert_eq!(model.config().end_of_text, [3, 7, 12]);
    let again = tempfile::tempdir().unwrap();
    model.save(again.path()).unwrap();
    assert_eq!(config_of(again.path())["eos_token_id"], json!([3, 7, 12]));
    fs::write(&generation, "[]").unwrap();
    let error = load(folder).unwrap_err().to_string();
    assert!(error.contains("generation_config.json"), "{error}");
}

#[test]
fn matrices_in_bfloat16_are_the_same_ones_rounded_in_half_the_room() {
    let _turn = turn();
    for kind in ["block", "medusa", "linear"] {
        let folder = tempfile::tempdir().unwrap();
        let [whole, half] = ["whole", "half"].map(|name| folder.path().join(name));
        let mut model = grown(kind, 3);
        train_a_little(&model);
        model.set_draft_vocabulary(Some(vec![3, 7, 20])).unwrap();
        model.save_heads(&whole).unwrap();
        model.save_heads_in(Kind::BFloat16, &half).unwrap();

        let joined = stock(|_| ()).with_heads(&half, &Registry::stock()).unwrap();
        assert_eq!(joined.draft_vocabulary().unwrap().tokens(), [3, 7, 20]);
        for head in 1..3 {
            let [found, before] =
                [&joined, &model].map(|model| model.head(head).unwrap().parameters(""));
            assert_eq!(found.len(), before.len());
            for (found, before) in found.iter().zip(&before) {
                let rounded = before.tensor.to_kind(Kind::BFloat16).to_kind(Kind::Float);
                let expected = if before.tensor.dim() == 2 { &rounded } else { &before.tensor };
                assert_eq!(&found.tensor, expected, "{kind}");
            }
        }
        let numbers = |path: &Path| -> usize {
            let tensors = read_safetensors(path).unwrap();
            let matrices = tensors.iter().filter(|(_, tensor)| tensor.dim() == 2);
            matrices.map(|(_, tensor)| tensor.numel() * tensor.kind().elt_size_in_bytes()).sum()
        };
        assert_eq!(numbers(&half) * 2, numbers(&whole), "{kind}");
    }
}

#[test]
fn a_grown_model_survives_its_folder() {
    let _turn = turn();
    for kind in ["block", "medusa", "linear"] {
        let folder = tempfile::tempdir().unwrap();
        let mut model = grown(kind, 4);
        train_a_little(&model);
        model.set_draft_vocabulary(Some(vec![1, 2, 30])).unwrap();
        model.save(folder.path()).unwrap();
        let loaded = load(folder.path()).unwrap();
        for head in 0..4 {
            assert_eq!(logits(&loaded, head), logits(&model, head), "{kind}");
        }
        assert_eq!(loaded.draft_vocabulary().unwrap().tokens(), [1, 2, 30]);
        assert_eq!(loaded.stock_sha256().unwrap(), stock(|_| ()).stock_sha256().unwrap());
    }
}

#[test]
fn drafts_come_from_the_draft_vocabulary_and_head_0_from_all() {
    let _turn = turn();
    let mut model = grown("block", 3);
    train_a_little(&model);
    model.set_draft_vocabulary(Some(vec![2, 5, 11, 39])).unwrap();
    let tokens = Tensor::arange(12, (Kind::Int64, Device::Cpu)).view([2, 6]);
    let hidden = model.hidden(&tokens).unwrap();
    assert_eq!(
        model.best_tokens(0, &hidden).unwrap(),
        model.logits(0, &hidden).unwrap().argmax(-1, false)
    );
    for head in 1..3 {
        let best =
            Vec::<i64>::try_from(model.best_tokens(head, &hidden).unwrap().view([-1])).unwrap();
        let all = model.logits(head, &hidden).unwrap().view([-1, 40]);
        for (row, best) in best.into_iter().enumerate() {
            let row = Vec::<f64>::try_from(all.get(row as i64).to_kind(Kind::Double)).unwrap();
            let expected = [2, 5, 11, 39].into_iter().max_by(|&a, &b| row[a].total_cmp(&row[b]));
            assert_eq!(Some(best as usize), expected);
        }
    }
    for wrong in [vec![], vec![40]] {
        let error = model.set_draft_vocabulary(Some(wrong)).unwrap_err().to_string();
        assert!(error.contains("below 40"), "{error}");
    }
}

#[test]
fn a_damaged_heads_file_is_named() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("heads.safetensors");
    let mut model = grown("block", 3);
    model.set_draft_vocabulary(Some(vec![3])).unwrap();
    model.save_heads(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    for len in [0, 100, bytes.len() - 1] {
        fs::write(&path, &bytes[..len]).unwrap();
        let error = stock(|_| ()).with_heads(&path, &Registry::stock()).unwrap_err().to_string();
        assert!(error.contains("heads.safetensors"), "{error}");
    }
    // One that says that it has far more heads than it has numbers.
    let metadata = [("heads", r#"{"type":"medusa","count":1000}"#.to_owned())];
    let one = Tensor::zeros([24, 24], (Kind::Float, Device::Cpu));
    write_safetensors_with(&path, &[("heads.1.linear.weight".to_owned(), one)], &metadata).unwrap();
    let error = stock(|_| ()).with_heads(&path, &Registry::stock()).unwrap_err().to_string();
    assert!(error.contains("576 numbers in 1 tensors, too few for 1000 heads"), "{error}");
    // A plain file of tensors, which does not say what it is.
    write_safetensors(
        &path,
        &[("heads.1.x".to_owned(), Tensor::zeros([2], (Kind::Float, Device::Cpu)))],
    )
    .unwrap();
    let error = stock(|_| ()).with_heads(&path, &Registry::stock()).unwrap_err().to_string();
    assert!(error.contains("does not say"), "{error}");
}

/// The index and the shards of [`shard`].
const SHARDED: [&str; 3] = [
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
];

/// The files of a model as Hugging Face's `save_pretrained` leaves them when it splits a model.
fn shard(folder: &Path) {
    let whole = folder.join("model.safetensors");
    let tensors = read_safetensors(&whole).unwrap();
    let (first, second) = tensors.split_at(tensors.len() / 2);
    let mut map = serde_json::Map::new();
    for (name, part) in [(SHARDED[1], first), (SHARDED[2], second)] {
        let part: Vec<(String, Tensor)> =
            part.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
        write_safetensors(&folder.join(name), &part).unwrap();
        map.extend(part.into_iter().map(|(tensor, _)| (tensor, json!(name))));
    }
    fs::remove_file(whole).unwrap();
    let index = json!({"metadata": {}, "weight_map": map});
    fs::write(folder.join(SHARDED[0]), index.to_string()).unwrap();
}

#[test]
fn a_published_folder_is_read_whatever_it_is_split_into() {
    let _turn = turn();
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 16.0,
    };
    for (tied, qkv_bias, rope_scaling) in [
        (false, false, RopeScaling::None),
        (true, false, scaling),
        (true, true, RopeScaling::Linear { factor: 2.0 }),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let model = stock(|sizes| {
            (sizes.tied, sizes.qkv_bias, sizes.rope_scaling) = (tied, qkv_bias, rope_scaling);
        });
        for parameter in model.parameters().iter().filter(|p| p.tensor.dim() == 1) {
            no_grad(|| {
                let noise = parameter.tensor.randn_like() * 0.3;
                _ = parameter.tensor.shallow_clone().g_add_(&noise);
            });
        }
        model.save(folder.path()).unwrap();
        let mut config = config_of(folder.path());
        config.as_object_mut().unwrap().remove("foretoken");
        assert_eq!(config["model_type"], if qkv_bias { "qwen2" } else { "llama" });
        if rope_scaling == scaling {
            // As files of before transformers 5 have it.
            let mut section = config.as_object_mut().unwrap().remove("rope_parameters").unwrap();
            section.as_object_mut().unwrap().remove("rope_theta");
            assert_eq!(config["rope_scaling"], section);
            assert_eq!(section["original_max_position_embeddings"], json!(16));
        }
        write_config(folder.path(), &config);
        shard(folder.path());
        let loaded = load(folder.path()).unwrap();
        assert_eq!(loaded.config(), model.config());
        assert_eq!(logits(&loaded, 0), logits(&model, 0));
        assert_eq!(loaded.parameter_count(), model.parameter_count());
    }
}

#[test]
fn what_an_index_and_its_shards_disagree_on_is_named() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    stock(|_| ()).save(folder.path()).unwrap();
    shard(folder.path());
    let path = folder.path().join("model.safetensors.index.json");
    let index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let refused = |change: &dyn Fn(&mut Value), word: &str| {
        let mut index = index.clone();
        change(&mut index);
        fs::write(&path, index.to_string()).unwrap();
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
        assert_eq!(error.lines().count(), 1);
    };
    refused(&|index| index["weight_map"] = json!(3), "weight_map");
    refused(&|index| index["weight_map"] = json!({}), "names no file");
    refused(
        &|index| index["weight_map"]["lm_head.weight"] = json!("../x.safetensors"),
        "same folder",
    );
    refused(
        &|index| index["weight_map"]["lm_head.weight"] = json!("none.safetensors"),
        "none.safetensors",
    );
    refused(
        &|index| index["weight_map"]["lm_head.weight"] = json!("two\nlines.safetensors"),
        "two\\nlines",
    );
    refused(
        &|index| index["weight_map"]["lm_head.weight"] = json!("model-00002-of-00002.safetensors"),
        "lm_head.weight",
    );
}

#[test]
fn pickled_weights_are_said_to_be_that() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    stock(|_| ()).save(folder.path()).unwrap();
    for name in ["model.safetensors", "model.safetensors.index.json"] {
        fs::remove_file(folder.path().join(name)).unwrap();
    }
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors"), "{error}");
    fs::write(folder.path().join("pytorch_model.bin"), "").unwrap();
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("pickled") && error.contains("as safetensors"), "{error}");
}

#[test]
fn a_tied_folder_may_store_the_unembedding_if_it_is_the_embedding() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let model = stock(|sizes| sizes.tied = true);
    model.save(folder.path()).unwrap();
    let path = folder.path().join("model.safetensors");
    let mut tensors = read_safetensors(&path).unwrap();
    tensors.push(("lm_head.weight".to_owned(), model.unembedding().detach()));
    write_safetensors(&path, &tensors).unwrap();
    assert_eq!(logits(&load(folder.path()).unwrap(), 0), logits(&model, 0));
    tensors.last_mut().unwrap().1 = model.unembedding().detach() * 2.0;
    write_safetensors(&path, &tensors).unwrap();
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight") && error.contains("differs"), "{error}");
}

#[test]
fn a_source_that_is_nothing_known_is_refused() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let refused = |words: &str| {
        let error = ModelSource::open(folder.path()).err().unwrap().to_string();
        assert!(error.contains("config.json") && error.contains(words), "{error}");
    };
    refused("give a model folder");
    fs::write(folder.path().join("b.gguf"), "").unwrap();
    fs::write(folder.path().join("a.gguf"), "").unwrap();
    refused("/a.gguf");
    stock(|_| ()).save(&folder.path().join("model")).unwrap();
    refused("/model");
    let missing = ModelSource::open(&folder.path().join("none.gguf"));
    assert!(missing.err().unwrap().to_string().contains("none.gguf"));
    let path = folder.path().join("text.gguf");
    fs::write(&path, "Just a text, no model.").unwrap();
    let error = ModelSource::open(&path).err().unwrap().to_string();
    assert!(error.contains("text.gguf") && error.contains("another format"), "{error}");
}

proptest! {
    // `PROPTEST_CASES=100000 cargo test -p foretoken-heads --test grown` for a long run.
    #[test]
    fn damaged_indices_and_shards_end_in_an_error_or_a_model(
        damaged in 0..SHARDED.len(),
        changes in prop::collection::vec((0usize..4000, any::<u8>()), 1..5),
        length in prop::option::of(prop::sample::select(vec![u64::MAX, 1 << 63, 1 << 32, 2, 0])),
        cut in prop::option::of(0usize..8000),
    ) {
        let _turn = turn();
        thread_local! {
            static WHOLE: (tempfile::TempDir, [Vec<u8>; SHARDED.len()], String) = {
                let folder = tempfile::tempdir().unwrap();
                let model = stock(|_| ());
                model.save(folder.path()).unwrap();
                shard(folder.path());
                let whole = SHARDED.map(|name| fs::read(folder.path().join(name)).unwrap());
                (folder, whole, model.stock_sha256().unwrap())
            };
        }
        WHOLE.with(|(folder, whole, weights)| {
            let path = folder.path().join(SHARDED[damaged]);
            let whole = &whole[damaged];
            let mut bytes = whole.clone();
            for (at, value) in changes {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            // Of a shard's header.
            if let Some(length) = length.filter(|_| damaged > 0) {
                bytes[..8].copy_from_slice(&length.to_le_bytes());
            }
            bytes.truncate(cut.unwrap_or(usize::MAX));
            fs::write(&path, &bytes).unwrap();
            let loaded = load(folder.path());
            fs::write(&path, whole).unwrap();
            match loaded {
                Err(error) => assert_eq!(error.to_string().lines().count(), 1),
                // An index names files; a shard's own numbers may be others.
                Ok(model) if damaged == 0 => assert_eq!(&model.stock_sha256().unwrap(), weights),
                Ok(_) => {}
            }
        });
    }
}
