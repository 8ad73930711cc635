//! A language model without a model, for tests of the decode loop: its state is a hash of all tokens so far, and its
//! logits are drawn from that hash. A token more, less or elsewhere changes everything that follows.
#![allow(dead_code, missing_docs)]

use std::sync::Arc;

use spikelet::backend::{LogitsWanted, PassRow, Runner};
use spikelet::config::{ModelConfig, ModelType, Neuron, SpikeVariant};
use spikelet::decode::{Decoder, Event, Events, FinishReason, Request, RowId, RowStats};
use spikelet::state::Slot;
use spikelet::tokenizer::Tokenizer;
use spikelet::{Error, Result};

/// Ids of the model; the last ones are padding that the tokenizer does not know.
pub const VOCAB: usize = 40;
/// Ids of the tokenizer.
pub const KNOWN: usize = 37;
/// Ends a text.
pub const EOS: u32 = 0;
/// Once this token is read, logits are NaN. It is padding, so it is never drawn.
pub const POISON: u32 = 38;

/// The hash of a sequence as four numbers of 16 bits, which f32 holds exactly.
type State = [f32; 4];

pub struct MockRunner {
    pub config: ModelConfig,
    pub max_pass_tokens: usize,
    /// The next pass fails.
    pub fail: bool,
    /// Rows and tokens of every pass, while there is room.
    pub passes: Vec<(usize, usize)>,
    states: Vec<State>,
    free: Vec<Slot>,
    logits: Vec<f32>,
    /// One number per line: the token that led to it.
    hidden: Vec<f32>,
    /// Added to the logit of the end of text: it is rare unless asked for.
    pub eos_bias: f32,
}

fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn hash(state: &State) -> u64 {
    state.iter().fold(0, |hash, part| hash << 16 | *part as u64)
}

fn after(state: &State, token: u32) -> State {
    let hash = mix(hash(state) ^ u64::from(token).wrapping_mul(0x1234_5678_9abc_def1));
    [48, 32, 16, 0].map(|shift| f32::from((hash >> shift) as u16))
}

impl MockRunner {
    pub fn new(max_pass_tokens: usize) -> Self {
        let config = ModelConfig {
            model_type: ModelType::Rwkv4,
            vocab_size: VOCAB,
            hidden_size: 1,
            attention_hidden_size: 1,
            num_hidden_layers: 1,
            intermediate_size: 1,
            context_length: None,
            layer_norm_epsilon: 1e-5,
            rescale_every: 0,
            spike_embedding: false,
            variant: SpikeVariant::Rwkv,
            neuron: Neuron::None,
            bos_token_id: None,
            eos_token_id: None,
            tokenizer_class: None,
            quantization: None,
        };
        Self {
            config,
            max_pass_tokens,
            fail: false,
            passes: Vec::with_capacity(1000),
            states: Vec::new(),
            free: Vec::new(),
            logits: Vec::with_capacity(VOCAB * max_pass_tokens),
            hidden: Vec::with_capacity(max_pass_tokens),
            eos_bias: -100.0,
        }
    }

    /// Slots that somebody holds.
    pub fn slots_in_use(&self) -> usize {
        self.states.len() - self.free.len()
    }

    fn push_logits(&mut self, state: &State, last: u32) {
        let hash = hash(state);
        self.hidden.push(last as f32);
        for id in 0..VOCAB as u64 {
            let noise = (mix(hash ^ mix(id)) >> 40) as f32 / (1_u64 << 24) as f32;
            let bias = if id == u64::from(EOS) { self.eos_bias } else { 0.0 };
            // Padding would win every draw.
            let padding = if id >= KNOWN as u64 { 50.0 } else { 0.0 };
            let poison = if last == POISON { f32::NAN } else { 0.0 };
            self.logits.push(noise * 8.0 - 4.0 + bias + padding + poison);
        }
    }
}

impl Runner for MockRunner {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn max_pass_tokens(&self) -> usize {
        self.max_pass_tokens
    }

    fn alloc_slot(&mut self) -> Result<Slot> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.states.push([f32::NAN; 4]);
            self.states.len() as Slot - 1
        });
        self.reset_slot(slot)?;
        Ok(slot)
    }

    fn free_slot(&mut self, slot: Slot) {
        assert!(!self.free.contains(&slot), "given back twice");
        self.states[slot as usize] = [f32::NAN; 4];
        self.free.push(slot);
    }

    fn reset_slot(&mut self, slot: Slot) -> Result<()> {
        self.states[slot as usize] = [1.0, 2.0, 3.0, 4.0];
        Ok(())
    }

    fn copy_slot(&mut self, from: Slot, to: Slot) -> Result<()> {
        self.states[to as usize] = self.states[from as usize];
        Ok(())
    }

    fn read_state(&self, slot: Slot) -> Result<Vec<f32>> {
        Ok(self.states[slot as usize].to_vec())
    }

    fn write_state(&mut self, slot: Slot, state: &[f32]) -> Result<()> {
        let found = state.try_into().map_err(|_| Error::State { reason: format!("{} numbers", state.len()) });
        self.states[slot as usize] = found?;
        Ok(())
    }

    fn forward(&mut self, rows: &[PassRow<'_>]) -> Result<()> {
        if std::mem::take(&mut self.fail) {
            return Err(Error::Unsupported { what: "this pass".into(), reason: "the test says so".into() });
        }
        let tokens: usize = rows.iter().map(|row| row.tokens.len()).sum();
        assert!(!rows.is_empty() && tokens <= self.max_pass_tokens, "{tokens} tokens");
        if self.passes.len() < self.passes.capacity() {
            self.passes.push((rows.len(), tokens));
        }
        self.logits.clear();
        self.hidden.clear();
        for (i, row) in rows.iter().enumerate() {
            assert!(!row.tokens.is_empty() && row.keep[0] == row.slot, "the first state is left in place");
            let several = row.keep.len() > 1;
            assert!(!several || row.keep.len() == row.tokens.len() && row.logits == LogitsWanted::All, "{row:?}");
            let own = |slot: &Slot| !row.keep.contains(slot);
            assert!(rows[..i].iter().all(|other| other.keep.iter().all(own)), "a slot serves two rows");
            let mut state = self.states[row.slot as usize];
            assert!(!state[0].is_nan(), "a slot that nobody holds");
            for (n, &token) in row.tokens.iter().enumerate() {
                assert!((token as usize) < VOCAB);
                state = after(&state, token);
                if several {
                    let slot = row.keep[n] as usize;
                    assert!(!self.free.contains(&row.keep[n]), "a slot that nobody holds");
                    self.states[slot] = state;
                }
                let last = n + 1 == row.tokens.len();
                if row.logits == LogitsWanted::All || row.logits == LogitsWanted::Last && last {
                    self.push_logits(&state, token);
                }
            }
            if !several {
                self.states[row.slot as usize] = state;
            }
        }
        Ok(())
    }

    fn logits(&self) -> &[f32] {
        &self.logits
    }

    fn hidden(&self) -> &[f32] {
        &self.hidden
    }
}

/// Letters, a few words, and the bytes of "é" and "🦀" apart.
pub struct MockTokenizer(Vec<Vec<u8>>);

impl MockTokenizer {
    pub fn new() -> Self {
        let mut pieces: Vec<Vec<u8>> = vec![Vec::new()];
        pieces.extend((b'a'..=b'z').map(|letter| vec![letter]));
        pieces.extend(["é".as_bytes(), "🦀".as_bytes()].concat().iter().map(|&byte| vec![byte]));
        pieces.extend([b" the".to_vec(), b"\n".to_vec(), "né".as_bytes().to_vec(), b"!".to_vec()]);
        assert_eq!(pieces.len(), KNOWN);
        Self(pieces)
    }
}

impl Tokenizer for MockTokenizer {
    fn vocab_size(&self) -> usize {
        KNOWN
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(text.bytes().map(|byte| u32::from(byte - b'a') + 1).collect())
    }

    fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text)
    }

    fn token_bytes(&self, id: u32) -> Result<&[u8]> {
        self.0.get(id as usize).map(Vec::as_slice).ok_or(Error::TokenId { id: id.into(), vocab_size: KNOWN })
    }

    fn eos_id(&self) -> Option<u32> {
        Some(EOS)
    }

    fn special_ids(&self) -> &[u32] {
        &[EOS]
    }

    fn id_to_token(&self, _: u32) -> Option<String> {
        None
    }

    fn token_to_id(&self, _: &str) -> Option<u32> {
        None
    }

    fn describe(&self) -> String {
        "mock".into()
    }

    fn fingerprint(&self) -> String {
        "mock".into()
    }
}

pub type MockDecoder = Decoder<MockRunner>;

pub fn decoder(max_pass_tokens: usize) -> MockDecoder {
    Decoder::new(MockRunner::new(max_pass_tokens), Arc::new(MockTokenizer::new()))
}

/// What the tokens' bytes are as text.
pub fn text_of(ids: &[u32]) -> String {
    let tokenizer = MockTokenizer::new();
    let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.0[id as usize].clone()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// All that a row told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    pub ids: Vec<u32>,
    pub text: String,
    /// As bits, so that equality means it.
    pub logprobs: Vec<u32>,
    pub tops: Vec<Vec<(u32, u32)>>,
    pub reason: Option<FinishReason>,
    pub error: Option<String>,
    pub counts: (usize, usize),
}

/// Collects what rows tell.
#[derive(Default)]
pub struct Listener {
    pub events: Events,
    pub rows: std::collections::BTreeMap<RowId, Told>,
    pub stats: std::collections::BTreeMap<RowId, RowStats>,
    /// Tokens that were guessed.
    pub drafted: usize,
}

impl Listener {
    pub fn step(&mut self, decoder: &mut MockDecoder) -> Result<()> {
        let done = decoder.step(&mut self.events);
        for event in self.events.iter() {
            match event {
                Event::Token { row, id, text, logprob, top_logprobs, drafted } => {
                    let told = self.rows.entry(row).or_default();
                    assert!(told.reason.is_none());
                    self.drafted += usize::from(drafted);
                    told.ids.push(id);
                    told.text.push_str(text);
                    told.logprobs.push(logprob.to_bits());
                    told.tops.push(top_logprobs.iter().map(|t| (t.id, t.logprob.to_bits())).collect());
                }
                Event::Finished { row, reason, text, stats, error } => {
                    let told = self.rows.entry(row).or_default();
                    assert!(told.reason.is_none(), "a row ends once");
                    assert_eq!(error.is_some(), reason == FinishReason::Error);
                    told.reason = Some(reason);
                    told.text.push_str(text);
                    told.error = error.map(ToString::to_string);
                    told.counts = (stats.num_prompt_tokens, stats.num_generated_tokens);
                    self.stats.insert(row, *stats);
                }
            }
        }
        done
    }

    pub fn finish(&mut self, decoder: &mut MockDecoder) {
        while !decoder.is_idle() {
            self.step(decoder).expect("passes do not fail");
        }
    }
}

/// Runs requests together until all have ended.
pub fn run(decoder: &mut MockDecoder, requests: &[Request]) -> Vec<Told> {
    let ids: Vec<RowId> = requests.iter().map(|request| decoder.add(request).expect("a good request")).collect();
    let mut listener = Listener::default();
    listener.finish(decoder);
    ids.iter().map(|id| listener.rows.remove(id).expect("every row ends")).collect()
}

pub fn run_one(decoder: &mut MockDecoder, request: &Request) -> Told {
    run(decoder, std::slice::from_ref(request)).remove(0)
}
