//! Names of tensors: from whatever a file uses to the original authors' names, and what they say about the architecture.

/// Wrappers of training programs that put their name in front of every tensor.
const WRAPPERS: &[&str] = &["module.", "_orig_mod.", "_forward_module."];

/// The original authors' name of a stored tensor.
///
/// Takes away the prefixes of training programs and translates Hugging Face's RWKV names
/// (`rwkv.blocks.0.attention.time_mix_key` is `blocks.0.att.time_mix_k`).
pub(super) fn canonical(stored: &str) -> String {
    let mut name = stored;
    while let Some(rest) = WRAPPERS.iter().find_map(|w| name.strip_prefix(w)) {
        name = rest;
    }
    let inner = name.strip_prefix("rwkv.").unwrap_or(name);
    if let Some(rest) = inner.strip_prefix("embeddings.") {
        return format!("emb.{rest}");
    }
    let Some((block, rest)) = block_of(inner) else {
        return inner.to_owned();
    };
    let (module, rest) = rest.split_once('.').unwrap_or((rest, ""));
    let module = match module {
        "attention" => "att",
        "feed_forward" => "ffn",
        "pre_ln" => "ln0",
        other => other,
    };
    let rest = match rest {
        "time_mix_key" => "time_mix_k",
        "time_mix_value" => "time_mix_v",
        "time_mix_receptance" => "time_mix_r",
        other => other,
    };
    format!("blocks.{block}.{module}.{rest}")
}

/// `blocks.12.att.key.weight` is block 12 and `att.key.weight`.
pub(super) fn block_of(name: &str) -> Option<(usize, &str)> {
    let (number, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
    // Only the usual spelling: `+1` and `01` would be other tensors with the same number.
    let usual = number.bytes().all(|b| b.is_ascii_digit()) && (number == "0" || !number.starts_with('0'));
    if !usual {
        return None;
    }
    Some((number.parse().ok()?, rest))
}

/// What the names say about the architecture.
#[derive(Debug, PartialEq)]
pub(super) enum Family {
    /// The tensors of RWKV-4, which SpikeGPT shares; `ffn_pre`: with `ffnPre` in block 0.
    Rwkv4Like { ffn_pre: bool },
    /// A known architecture that this version does not run, and the tensor that shows it.
    Other { architecture: &'static str, evidence: String },
    /// Nothing known.
    Unknown,
}

/// Marks of architectures, the most telling first: end of a tensor's name, architecture.
const MARKS: &[(&str, &str)] = &[
    ("att.r_k", "RWKV-7"),
    ("attn.r_k", "RWKV-7"),
    ("att.time_maa_x", "RWKV-6"),
    ("att.time_faaaa", "RWKV-5 or RWKV-6"),
    ("att.ln_x.weight", "RWKV-5"),
    ("attn.c_attn.weight", "GPT-2"),
    ("self_attn.q_proj.weight", "a transformer of the Llama family"),
    ("mixer.A_log", "Mamba"),
];

/// Judges the canonical names of a file.
pub(super) fn family<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Family {
    for (mark, architecture) in MARKS {
        if let Some(name) =
            names.clone().find(|n| n.strip_suffix(mark).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
        {
            return Family::Other { architecture, evidence: name.to_owned() };
        }
    }
    if !names.clone().any(|n| block_of(n).is_some()) {
        return Family::Unknown;
    }
    Family::Rwkv4Like { ffn_pre: names.clone().any(|n| n.starts_with("blocks.0.ffnPre.")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_becomes_the_authors_name() {
        for (stored, name) in [
            ("emb.weight", "emb.weight"),
            ("rwkv.embeddings.weight", "emb.weight"),
            ("rwkv.blocks.0.pre_ln.bias", "blocks.0.ln0.bias"),
            ("rwkv.blocks.11.attention.time_mix_key", "blocks.11.att.time_mix_k"),
            ("rwkv.blocks.2.attention.time_mix_value", "blocks.2.att.time_mix_v"),
            ("rwkv.blocks.2.feed_forward.time_mix_receptance", "blocks.2.ffn.time_mix_r"),
            ("rwkv.blocks.2.feed_forward.receptance.weight", "blocks.2.ffn.receptance.weight"),
            ("rwkv.ln_out.weight", "ln_out.weight"),
            ("head.weight", "head.weight"),
            ("module._orig_mod.blocks.0.ffnPre.key.weight", "blocks.0.ffnPre.key.weight"),
            ("blocks.x.attention.y", "blocks.x.attention.y"),
            ("blocks.01.attention.y", "blocks.01.attention.y"),
            ("blocks.99999999999999999999999.att.y", "blocks.99999999999999999999999.att.y"),
        ] {
            assert_eq!(canonical(stored), name, "{stored}");
        }
    }

    #[test]
    fn architectures_are_told_by_their_marks() {
        let family = |names: &[&'static str]| family(names.iter().copied());
        assert_eq!(family(&["blocks.0.att.key.weight"]), Family::Rwkv4Like { ffn_pre: false });
        assert_eq!(family(&["blocks.0.ffnPre.key.weight"]), Family::Rwkv4Like { ffn_pre: true });
        assert_eq!(family(&["x", "y"]), Family::Unknown);
        for (name, expected) in [
            ("blocks.0.att.r_k", "RWKV-7"),
            ("blocks.0.att.time_maa_x", "RWKV-6"),
            ("blocks.0.att.ln_x.weight", "RWKV-5"),
            ("transformer.h.0.attn.c_attn.weight", "GPT-2"),
        ] {
            assert!(
                matches!(family(&["blocks.0.att.key.weight", name]), Family::Other { architecture, .. } if architecture == expected)
            );
        }
    }
}
