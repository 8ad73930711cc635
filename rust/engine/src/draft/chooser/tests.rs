//! Plans one by one, and what holds for all of them.

use proptest::prelude::*;

use super::*;
use crate::draft::cost::{Curve, DraftCost};

/// Four tokens cost little more than one, further ones a quarter each; a guess of the prophet a twentieth.
fn table() -> CostTable {
    let mut table = CostTable::new(Curve::through(&[(1, 1e-3), (4, 1.1e-3), (8, 2.1e-3), (64, 16.1e-3)]), 1e-6);
    let step = Curve::through(&[(1, 5e-5), (16, 1e-4)]);
    table.set_draft(Source::Prophet, DraftCost { first: step.clone(), next: step });
    table
}

fn chooser() -> Chooser {
    Chooser::new(Arc::new(table()))
}

/// Teaches that guesses of a source come true with probability `share`.
fn teach(chooser: &mut Chooser, record: &mut RowRecord, source: Source, share: f64) {
    for i in 0..200 {
        let hit = (f64::from(i + 1) * share).floor() > (f64::from(i) * share).floor();
        chooser.observe(source, record, &[0.5], 1, usize::from(hit));
    }
}

#[test]
fn nothing_offered_is_nothing_drafted() {
    let mut chooser = chooser();
    chooser.begin(0, 512);
    assert_eq!(chooser.plan(), []);
    chooser.begin(3, 512);
    chooser.row(0, None);
    chooser.row(8, None);
    assert_eq!(chooser.plan(), [Choice::default(); 2]);
    assert!(!chooser.more(0, &[]) && !chooser.more(7, &[]));
    assert_eq!(chooser.expected_speedup(), 1.0);
    // No row takes a draft, and an offer to a row that may not draft is none.
    chooser.begin(0, 512);
    chooser.offer(Source::Prophet, &RowRecord::default());
    chooser.row(0, None);
    chooser.offer(Source::Prophet, &RowRecord::default());
    chooser.offer_ready(Source::NGram, &RowRecord::default(), &[0.9], Cut::Anywhere);
    assert_eq!(chooser.plan(), [Choice::default()]);
}

#[test]
fn the_better_source_is_chosen() {
    let (mut chooser, mut record) = (chooser(), RowRecord::default());
    teach(&mut chooser, &mut record, Source::Prophet, 0.8);
    for (share, chosen) in [(0.3, Source::Prophet), (0.95, Source::NGram)] {
        teach(&mut chooser, &mut record, Source::NGram, share);
        chooser.begin(0, 512);
        chooser.row(8, None);
        chooser.offer_ready(Source::NGram, &record, &[0.5; 6], Cut::Anywhere);
        chooser.offer(Source::Prophet, &record);
        assert_eq!(chooser.plan()[0].source, Some(chosen), "{share}");
        assert!(chooser.expected_speedup() > 1.5);
    }
}

#[test]
fn steps_of_the_pass_are_filled() {
    let (mut chooser, mut record) = (chooser(), RowRecord::default());
    teach(&mut chooser, &mut record, Source::NGram, 0.6);
    chooser.begin(0, 512);
    chooser.row(16, None);
    chooser.offer_ready(Source::NGram, &record, &[0.5; 12], Cut::Anywhere);
    assert_eq!(chooser.plan()[0], Choice { source: Some(Source::NGram), length: 3 });
    // A prompt that is read meanwhile has filled it already.
    chooser.begin(30, 512);
    chooser.row(16, None);
    chooser.offer_ready(Source::NGram, &record, &[0.5; 12], Cut::Anywhere);
    assert!(chooser.plan()[0].length > 3, "beside much else a guess costs little");
}

#[test]
fn rows_get_guesses_in_the_order_of_their_chances() {
    let (mut chooser, mut good, mut bad) = (chooser(), RowRecord::default(), RowRecord::default());
    for _ in 0..100 {
        chooser.observe(Source::NGram, &mut good, &[0.6], 1, 1);
        chooser.observe(Source::NGram, &mut bad, &[0.6], 1, 0);
    }
    chooser.begin(0, 512);
    for record in [&bad, &good] {
        chooser.row(16, None);
        chooser.offer_ready(Source::NGram, record, &[0.6; 6], Cut::Anywhere);
    }
    let lengths: Vec<_> = chooser.plan().iter().map(|choice| choice.length).collect();
    assert!(lengths[0] == 0 && lengths[1] >= 2, "{lengths:?}");
}

#[test]
fn drafting_goes_on_while_the_drafter_is_sure() {
    let (mut chooser, mut record) = (chooser(), RowRecord::default());
    for i in 0..400 {
        chooser.observe(Source::Prophet, &mut record, &[0.95], 1, usize::from(i % 20 != 0));
        chooser.observe(Source::Prophet, &mut record, &[0.1], 1, 0);
    }
    chooser.begin(0, 512);
    chooser.row(16, None);
    chooser.offer(Source::Prophet, &record);
    assert_eq!(chooser.plan()[0].source, Some(Source::Prophet));
    assert!(chooser.more(0, &[0.95]));
    assert!(!chooser.more(0, &[0.1]));
    assert!(!chooser.more(0, &[0.95; 16]), "no more than the row may have");
    // A last guess of which the drafter was not sure is cut.
    chooser.begin(0, 512);
    chooser.row(16, None);
    chooser.offer_ready(Source::Prophet, &record, &[0.95, 0.95, 0.1], Cut::Anywhere);
    assert_eq!(chooser.settle()[0].length, 2);
}

#[test]
fn tokens_that_were_drawn_by_chance_stay() {
    let (mut chooser, mut record) = (chooser(), RowRecord::default());
    teach(&mut chooser, &mut record, Source::Prophet, 0.02);
    for (cut, length) in [(Cut::Anywhere, 0), (Cut::Last, 2)] {
        chooser.begin(0, 512);
        chooser.row(16, None);
        chooser.offer_ready(Source::Prophet, &record, &[0.5; 3], cut);
        assert_eq!(chooser.settle()[0].length, length);
    }
}

#[test]
fn a_fixed_length_is_kept_whatever_it_costs() {
    let (mut chooser, mut record) = (chooser(), RowRecord::default());
    teach(&mut chooser, &mut record, Source::Prophet, 0.0);
    for _ in 0..200 {
        chooser.begin(0, 512);
        chooser.row(16, Some(5));
        chooser.offer(Source::Prophet, &record);
        chooser.row(3, Some(5));
        chooser.offer_ready(Source::NGram, &record, &[0.1; 5], Cut::Anywhere);
        let lengths: Vec<_> = chooser.plan().iter().map(|choice| choice.length).collect();
        assert_eq!(lengths, [5, 3]);
        assert!(chooser.more(0, &[0.0; 4]) && !chooser.more(0, &[0.0; 5]));
    }
    chooser.begin(0, 512);
    chooser.row(16, Some(5));
    chooser.offer_ready(Source::Prophet, &record, &[0.0; 5], Cut::Anywhere);
    assert_eq!(chooser.settle()[0].length, 5);
}

#[test]
fn what_loses_is_tried_again_and_rarely() {
    let (mut chooser, mut record) = (chooser(), RowRecord::default());
    teach(&mut chooser, &mut record, Source::Prophet, 0.0);
    let mut tried = 0;
    for _ in 0..4000 {
        chooser.begin(0, 512);
        chooser.row(8, None);
        chooser.offer(Source::Prophet, &record);
        if chooser.plan()[0].source.is_some() {
            tried += 1;
            chooser.observe(Source::Prophet, &mut record, &[0.5], 1, 0);
        }
    }
    assert!((10..90).contains(&tried), "{tried}");
}

#[derive(Clone, Debug)]
struct Wish {
    max_tokens: usize,
    fixed: Option<usize>,
    ready: Option<(Vec<f32>, bool)>,
    asked: bool,
}

fn wish() -> impl Strategy<Value = Wish> {
    let confidence = prop::collection::vec(prop_oneof![0.0..1.0_f32, Just(f32::NAN), Just(1.0)], 0..20);
    let fixed = prop_oneof![3 => Just(None), 1 => (0..20_usize).prop_map(Some)];
    let ready = prop::option::of((confidence, any::<bool>()));
    (0..20_usize, fixed, ready, any::<bool>()).prop_map(|(max_tokens, fixed, ready, asked)| Wish {
        max_tokens,
        fixed,
        ready,
        asked,
    })
}

/// Plans a round; what each row may have at most.
fn play(chooser: &mut Chooser, wishes: &[Wish], other: usize, room: usize, settle: bool) -> Vec<Choice> {
    let record = RowRecord::default();
    chooser.begin(other, room);
    for wish in wishes {
        chooser.row(wish.max_tokens, wish.fixed);
        if let Some((confidence, anywhere)) = &wish.ready {
            let cut = if *anywhere || !settle { Cut::Anywhere } else { Cut::Last };
            chooser.offer_ready(Source::NGram, &record, confidence, cut);
        }
        if wish.asked && !settle {
            chooser.offer(Source::Prophet, &record);
        }
    }
    if settle { chooser.settle().to_vec() } else { chooser.plan().to_vec() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn plans_respect_caps_and_room(
        rounds in prop::collection::vec((prop::collection::vec(wish(), 0..24), 0..80_usize, 0..200_usize, any::<bool>()), 1..20),
        seconds in prop::collection::vec((1..600_usize, 0.0..1.0_f64), 0..20),
    ) {
        let [mut chooser, mut twin] = [chooser(), chooser()];
        for (wishes, other, room, settle) in &rounds {
            for &(tokens, seconds) in &seconds {
                chooser.costs_mut().note_pass(tokens, seconds);
                twin.costs_mut().note_pass(tokens, seconds);
            }
            let choices = play(&mut chooser, wishes, *other, *room, *settle);
            prop_assert_eq!(choices.len(), wishes.len());
            for (choice, wish) in choices.iter().zip(wishes) {
                let most = wish.max_tokens.min(MAX_DRAFT).min(wish.fixed.unwrap_or(MAX_DRAFT));
                prop_assert!(choice.length <= most);
                prop_assert_eq!(choice.source.is_some(), choice.length > 0);
                if choice.source == Some(Source::NGram) {
                    prop_assert!(choice.length <= wish.ready.as_ref().map_or(0, |(confidence, _)| confidence.len()));
                }
                prop_assert!(choice.source != Some(Source::Prophet) || wish.asked && !settle);
            }
            let guesses: usize = choices.iter().map(|choice| choice.length).sum();
            prop_assert!(guesses <= room.saturating_sub(other + wishes.len()));
            prop_assert!(chooser.expected_speedup().is_finite());
            prop_assert_eq!(&play(&mut twin, wishes, *other, *room, *settle), &choices, "equal calls, equal choices");
            for (row, choice) in choices.iter().enumerate() {
                for drafted in choice.length..MAX_DRAFT {
                    prop_assert!(!chooser.more(row, &[0.9; MAX_DRAFT][..drafted]));
                }
            }
            for chooser in [&mut chooser, &mut twin] {
                let mut record = RowRecord::default();
                chooser.observe(Source::Prophet, &mut record, &[0.3, f32::NAN], 9, 7);
            }
        }
    }
}

#[test]
fn rounds_take_no_memory_once_they_are_as_large_as_ever() {
    let (mut chooser, mut records) = (chooser(), [RowRecord::default(); 16]);
    let mut memory = None;
    for round in 0..200 {
        let rows = if round < 2 { 16 } else { 1 + round % 16 };
        chooser.begin(0, 512);
        for record in &records[..rows] {
            chooser.row(16, None);
            chooser.offer_ready(Source::NGram, record, &[0.9; 16], Cut::Anywhere);
            chooser.offer(Source::Prophet, record);
        }
        chooser.plan();
        for record in &mut records[..rows] {
            chooser.observe(Source::NGram, record, &[0.9; 16], 16, 16);
        }
        let Chooser { rows, offers, choices, next, order, .. } = &chooser;
        let now = (rows.capacity(), offers.capacity(), choices.capacity(), next.capacity(), order.capacity());
        if round > 1 {
            assert_eq!(*memory.get_or_insert(now), now);
        }
    }
}
