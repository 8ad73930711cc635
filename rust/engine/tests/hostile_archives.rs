//! `.pth` files whose archive, storages or views lie about their places: refused with a message that names the lie.

mod files;

use files::{Pickler, golden, legacy_pth_of, legacy_start, refused_pth as refused, tensor, tensors, zip, zip_pth_of};

/// A file with one tensor whose description is free.
fn view(offset: usize, shape: &[usize], strides: &[usize], claimed: usize, stored: usize) -> String {
    let pickle = Pickler::new()
        .op(b"}")
        .str("blocks.0.x")
        .global("torch._utils", "_rebuild_tensor_v2")
        .op(b"(")
        .storage("0", "FloatStorage", claimed, false)
        .int(offset)
        .ints(shape)
        .ints(strides)
        .op(b"\x89NtRs")
        .stop();
    let data = vec![0; stored];
    refused(&zip(&[("archive/data.pkl", &pickle), ("archive/data/0", &data)]))
}

#[test]
fn views_that_leave_their_storage() {
    let fine = view(0, &[2, 3], &[3, 1], 6, 24);
    assert!(fine.contains("tensor `emb.weight`: it is missing"), "{fine}");
    let fine = view(0, &[2, 3], &[1, 2], 6, 24);
    assert!(fine.contains("tensor `emb.weight`: it is missing"), "{fine}");
    for (offset, shape, strides, claimed, stored, expected) in [
        (
            0,
            &[2, 4][..],
            &[4, 1][..],
            6,
            24,
            "its view (offset 0, shape [2, 4], strides [4, 1]) leaves its storage of 6 values",
        ),
        (1, &[6], &[1], 6, 24, "leaves its storage"),
        (7, &[0], &[1], 6, 24, "leaves its storage"),
        (usize::MAX >> 1, &[1], &[1], 6, 24, "leaves its storage"),
        (0, &[2], &[usize::MAX >> 1], 6, 24, "leaves its storage"),
        (0, &[3, 3], &[usize::MAX >> 2, 1], 6, 24, "leaves its storage"),
        (0, &[1 << 32, 1 << 32], &[0, 0], 6, 24, "its shape [4294967296, 4294967296] overflows"),
        (0, &[1 << 30, 6], &[0, 1], 6, 24, "its values overlap"),
        (0, &[0, 1 << 62, 1 << 62], &[1, 1, 1], 6, 24, "it is missing"),
        (usize::MAX, &[1], &[1], 6, 24, "a tensor begins at -1"),
        (0, &[usize::MAX], &[1], 6, 24, "a tensor's shape or stride holds -1"),
        (0, &[1], &[1, 1], 6, 24, "a tensor has 1 dimensions but 2 strides"),
        (0, &[1; 9], &[1; 9], 6, 24, "a tensor has 9 dimensions, at most 8 are read"),
        (0, &[6], &[1], 6, 20, "its storage has 20 bytes, needed 6 values of 4"),
        (0, &[6], &[1], usize::MAX >> 1, 24, "needed 9223372036854775807 values of 4"),
    ] {
        let message = view(offset, shape, strides, claimed, stored);
        assert!(message.contains(expected), "needed {expected}\nfound {message}");
    }
}

#[test]
fn shared_values_are_not_copied_without_end() {
    let all = tensor("w", &[0.0; 1024]);
    let mut pickle = Pickler::new().storage("0", "FloatStorage", 1024, false).op(b"q\x01}");
    for i in 0..100 {
        pickle = pickle.str(&format!("blocks.0.{i}")).global("torch._utils", "_rebuild_tensor_v2");
        pickle = pickle.op(b"(h\x01").int(0).ints(&[32, 32]).ints(&[1, 32]).op(b"\x89NtRs");
    }
    let message = refused(&zip(&[("archive/data.pkl", &pickle.stop()), ("archive/data/0", &all.bytes)]));
    assert!(message.contains("too many tensors are not contiguous and share their values"), "{message}");
}

#[test]
fn archives_that_are_not_those_of_torch_save() {
    let pickle = Pickler::new().op(b"}").stop();
    let good = zip(&[("a/data.pkl", &pickle)]);
    for (file, expected) in [
        (zip(&[("a/data.txt", b"x")]), "found 0 members `data.pkl`, needed one"),
        (zip(&[("a/data.pkl", &pickle), ("b/data.pkl", &pickle)]), "found 2 members `data.pkl`, needed one"),
        (zip(&[("a/data.pkl", &pickle), ("a/data.pkl", &pickle)]), "its member `a/data.pkl` appears twice"),
        (zip(&[("a/data.pkl", &pickle), ("a/constants.pkl", b"")]), "it is a TorchScript program"),
        (zip(&[("a/data.pkl", &pickle), ("a/byteorder", b"big")]), "it was written on a big-endian machine"),
        (good[..good.len() - 1].to_vec(), "the archive's directory is missing: the file is truncated"),
        (good[..40].to_vec(), "the archive's directory is missing: the file is truncated"),
        (b"PK\x03\x04".to_vec(), "the archive's directory is missing"),
    ] {
        let message = refused(&file);
        assert!(message.contains("not a .pth file of tensors: "), "{message}");
        assert!(message.contains(expected), "needed {expected}\nfound {message}");
    }
    let directory = good.windows(4).position(|w| w == b"PK\x01\x02").expect("a directory");
    let end = good.windows(4).position(|w| w == b"PK\x05\x06").expect("an end record");
    for (at, bytes, expected) in [
        (directory + 10, &[8, 0][..], "its member `a/data.pkl` is compressed or encrypted"),
        (directory + 8, &[1, 0], "its member `a/data.pkl` is compressed or encrypted"),
        (directory + 42, &[200, 0, 0, 0], "its member `a/data.pkl` lies outside the file"),
        (directory + 42, &[1, 0, 0, 0], "its member `a/data.pkl` lies outside the file"),
        (directory + 42, &[0xff; 4], "the archive's directory is broken"),
        (directory + 28, &[0xff; 2], "the archive's directory is broken"),
        (directory + 24, &[9, 9, 9, 9], "the archive's directory is broken"),
        (directory, b"XX", "the archive's directory is broken"),
        (26, &[0xff; 2], "its member `a/data.pkl` lies outside the file"),
        (end + 16, &[0xff; 4], "the archive's directory lies outside the file"),
        (end + 4, &[1, 0], "the archive is split over several files"),
    ] {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        let message = refused(&file);
        assert!(message.contains(expected), "at {at}: needed {expected}\nfound {message}");
    }
}

#[test]
fn truncated_files_of_both_layouts() {
    let all = tensors(&golden("rwkv4-tiny").join("model.safetensors"));
    let whole = zip_pth_of(&all);
    assert!(refused(&whole[..whole.len() / 2]).contains("the file is truncated"));
    let whole = legacy_pth_of(&all);
    let message = refused(&whole[..whole.len() - 1]);
    assert!(message.contains("storage 77 reaches past the end: the file is truncated"), "{message}");
    assert!(refused(&whole[..200]).contains("the pickle ends in the middle"));
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    assert!(refused(&tar).contains("the tar layout of PyTorch before 0.2"));
}

#[test]
fn legacy_files_that_contradict_themselves() {
    let all = [tensor("blocks.0.x", &[1.0, 2.0])];
    let whole = legacy_pth_of(&all);
    let numel = whole.len() - 16;
    let mut file = whole.clone();
    file[numel] = 3;
    assert!(refused(&file).contains("storage 0 holds 3 values, needed 2"));
    let start = Pickler::new().op(b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19").stop();
    let file = [&start[..], &Pickler::new().int(1000).stop()].concat();
    assert!(refused(&file).contains("its layout version is an integer, needed 1001"));
    let big = Pickler::new().op(b"}").str("little_endian").op(b"\x89s").stop();
    let file = [&start[..], &Pickler::new().int(1001).stop(), &big].concat();
    assert!(refused(&file).contains("it was not written on a little-endian machine"));
    let object = Pickler::new().dict_of_tensors(&all, true).stop();
    let file = [&legacy_start()[..], &object, &Pickler::new().op(b"](").str("7").op(b"e").stop()].concat();
    assert!(refused(&file).contains("its storage 7 is nowhere described"));
    let file = [&legacy_start()[..], &object, &Pickler::new().op(b"]").stop()].concat();
    assert!(refused(&file).contains("tensor `blocks.0.x`: its storage 0 is not in the file"));
}
