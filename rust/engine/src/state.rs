//! Recurrent state as plain numbers: a layout that names every part of it and a pool of equal slots.
//!
//! A *slot* holds all that a model remembers of one sequence. Running a pass reads one slot and fills others, so forking is
//! a copy of one slot and rolling back to an earlier token is choosing the slot that was filled after it.

use std::ops::Range;

use crate::error::{Error, Result};

/// Index of a slot in a [`StatePool`].
pub type Slot = u32;

/// One named part of the state of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct StateField {
    /// Such as `blocks.3.att.shift`.
    pub name: String,
    /// Where the field lies in a slot, in f32 elements.
    pub range: Range<usize>,
    /// The value of every element before the first token.
    pub fresh: f32,
}

/// Names and places of everything in a slot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateLayout {
    fields: Vec<StateField>,
    len: usize,
}

impl StateLayout {
    /// Appends a field of `len` elements and says where it lies.
    pub fn push(&mut self, name: String, len: usize, fresh: f32) -> Range<usize> {
        let range = self.len..self.len + len;
        self.len = range.end;
        self.fields.push(StateField { name, range: range.clone(), fresh });
        range
    }

    /// The fields in the order in which they lie in a slot.
    pub fn fields(&self) -> &[StateField] {
        &self.fields
    }

    /// Elements (f32) in a slot.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether a slot holds nothing at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes the state before the first token into `slot`.
    pub fn fill_fresh(&self, slot: &mut [f32]) {
        for field in &self.fields {
            slot[field.range.clone()].fill(field.fresh);
        }
    }
}

/// Slots of one layout in one piece of memory.
///
/// Memory grows by whole slots when none is free and is then reused, so a steady decode loop allocates nothing.
#[derive(Debug)]
pub struct StatePool {
    layout: StateLayout,
    data: Vec<f32>,
    free: Vec<Slot>,
    slots: usize,
}

impl StatePool {
    /// A pool without slots.
    pub fn new(layout: StateLayout) -> Self {
        Self { layout, data: Vec::new(), free: Vec::new(), slots: 0 }
    }

    /// What a slot holds.
    pub fn layout(&self) -> &StateLayout {
        &self.layout
    }

    /// Takes a slot and puts the state before the first token into it.
    pub fn alloc(&mut self) -> Slot {
        let slot = self.free.pop().unwrap_or_else(|| {
            let slot = self.slots as Slot;
            self.slots += 1;
            self.data.resize(self.slots * self.layout.len, f32::NAN);
            // Room for every slot to come back, so that giving slots back never allocates.
            self.free.reserve(self.slots);
            slot
        });
        self.reset(slot);
        slot
    }

    /// Gives a slot back. Its content is poisoned in debug builds, so that a stale read shows.
    pub fn free(&mut self, slot: Slot) {
        debug_assert!(!self.free.contains(&slot), "slot {slot} was given back twice");
        if cfg!(debug_assertions) {
            self.get_mut(slot).fill(f32::NAN);
        }
        self.free.push(slot);
    }

    /// Puts the state before the first token into a slot.
    pub fn reset(&mut self, slot: Slot) {
        let range = self.range(slot);
        self.layout.fill_fresh(&mut self.data[range]);
    }

    /// Copies one slot over another.
    pub fn copy(&mut self, from: Slot, to: Slot) {
        let (from, to) = (self.range(from), self.range(to));
        self.data.copy_within(from, to.start);
    }

    /// Content of a slot.
    pub fn get(&self, slot: Slot) -> &[f32] {
        &self.data[self.range(slot)]
    }

    /// Content of a slot, to be changed.
    pub fn get_mut(&mut self, slot: Slot) -> &mut [f32] {
        let range = self.range(slot);
        &mut self.data[range]
    }

    /// Replaces the content of a slot with a state that was read before.
    ///
    /// # Errors
    /// [`Error::State`] if the length is not that of this layout, or a value is not a number.
    pub fn write(&mut self, slot: Slot, state: &[f32]) -> Result<()> {
        if state.len() != self.layout.len {
            return Err(Error::State {
                reason: format!("it holds {} numbers, this model's state has {}", state.len(), self.layout.len),
            });
        }
        if let Some(i) = state.iter().position(|x| x.is_nan()) {
            return Err(Error::State { reason: format!("number {i} is NaN") });
        }
        self.get_mut(slot).copy_from_slice(state);
        Ok(())
    }

    fn range(&self, slot: Slot) -> Range<usize> {
        let start = slot as usize * self.layout.len;
        start..start + self.layout.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> StatePool {
        let mut layout = StateLayout::default();
        assert_eq!(layout.push("a".into(), 2, 0.0), 0..2);
        assert_eq!(layout.push("b".into(), 3, -1.0), 2..5);
        StatePool::new(layout)
    }

    #[test]
    fn fresh_slots_hold_the_fresh_values_also_when_reused() {
        let mut pool = pool();
        let a = pool.alloc();
        assert_eq!(pool.get(a), [0.0, 0.0, -1.0, -1.0, -1.0]);
        pool.get_mut(a).fill(7.0);
        pool.free(a);
        let b = pool.alloc();
        assert_eq!(a, b);
        assert_eq!(pool.get(b), [0.0, 0.0, -1.0, -1.0, -1.0]);
    }

    #[test]
    fn copies_are_independent() {
        let mut pool = pool();
        let (a, b) = (pool.alloc(), pool.alloc());
        pool.get_mut(a)[0] = 3.0;
        pool.copy(a, b);
        pool.get_mut(a)[0] = 4.0;
        assert_eq!(pool.get(b)[0], 3.0);
    }

    #[test]
    fn a_state_of_another_model_is_refused() {
        let mut pool = pool();
        let a = pool.alloc();
        let error = pool.write(a, &[0.0; 4]).expect_err("refused").to_string();
        assert!(error.contains("4 numbers") && error.contains("has 5"), "{error}");
        assert!(pool.write(a, &[f32::NAN; 5]).is_err());
        assert_eq!(pool.get(a), [0.0, 0.0, -1.0, -1.0, -1.0], "a refused state changes nothing");
    }
}
