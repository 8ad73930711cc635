//! Hostile `.pth` files: whatever a pickle asks for, nothing is run, nothing large is made, and the message names what was asked for.

mod files;

use files::{Pickler, legacy_start, refused_pth as refused, tensor, zip_pth};

/// The same pickle in both layouts and bare, as a file that torch did not write; all must be refused alike.
fn pickle_refused(pickle: &[u8]) -> String {
    let message = refused(&zip_pth(pickle));
    let legacy = refused(&[&legacy_start()[..], pickle].concat());
    assert_eq!(message, legacy, "the layouts differ");
    message
}

#[test]
fn callables_are_named_and_never_called() {
    let folder = tempfile::tempdir().expect("a folder");
    let marker = folder.path().join("ran");
    let command = format!("touch {}", marker.display());
    let call = |p: Pickler| p.op(b"(").str(&command).op(b"tR");
    let asks = |name: &str| format!("the pickle asks for `{name}`; only tensors are read, nothing is run");
    let inst = Pickler::new().op(b"(").str(&command).op(b"ios\nsystem\n").stop();
    let mut cases = vec![
        (call(Pickler::new().global("os", "system")).stop(), asks("os.system")),
        (call(Pickler::new().global("posix", "system")).stop(), asks("posix.system")),
        (call(Pickler::new().global("nt", "system")).stop(), asks("nt.system")),
        (call(Pickler::new().global("builtins", "eval")).stop(), asks("builtins.eval")),
        (call(Pickler::new().global("__builtin__", "exec")).stop(), asks("__builtin__.exec")),
        (
            call(Pickler::new().global("torch._utils", "_rebuild_tensor_v2.__globals__")).stop(),
            asks("torch._utils._rebuild_tensor_v2.__globals__"),
        ),
        (call(Pickler::new().global("torch", "load")).stop(), asks("torch.load")),
        (call(Pickler::new().str("os").str("system").op(b"\x93")).stop(), asks("os.system")),
        (inst, asks("os.system")),
        // Fetched but never called: refused all the same.
        (Pickler::new().global("subprocess", "Popen").op(b"0N").stop(), asks("subprocess.Popen")),
        // Hidden where a tensor's hooks, a name, a size or a storage's class should be.
        (
            Pickler::new()
                .global("torch._utils", "_rebuild_tensor_v2")
                .op(b"(N")
                .global("os", "system")
                .op(b"tR")
                .stop(),
            asks("os.system"),
        ),
        (call(Pickler::new().op(b"}").global("os", "system")).op(b"Ns").stop(), asks("os.system")),
        (
            Pickler::new().op(b"(").str("storage").global("os", "system").str("0").str("cpu").int(1).op(b"tQ").stop(),
            asks("os.system"),
        ),
        (
            Pickler::new().global("collections", "OrderedDict").op(b"(").global("os", "system").op(b"tR").stop(),
            asks("os.system"),
        ),
        // Calls of things that may be named, but not be called so.
        (
            Pickler::new().global("torch", "FloatStorage").op(b")R").stop(),
            "the pickle calls a function or class; nothing is run".into(),
        ),
        (Pickler::new().str("os.system").op(b")R").stop(), "the pickle calls a string; nothing is run".into()),
        (
            Pickler::new().global("collections", "OrderedDict").op(b")\x81").stop(),
            "NEWOBJ, which calls a class (0x81".into(),
        ),
        (
            Pickler::new().global("collections", "OrderedDict").op(b")}\x92").stop(),
            "NEWOBJ_EX, which calls a class (0x92".into(),
        ),
        (
            Pickler::new().op(b"(").global("collections", "OrderedDict").op(b"o").stop(),
            "OBJ, which calls a class (0x6f".into(),
        ),
        (Pickler::new().op(b"\x82\x01").stop(), "EXT, which calls a registered function (0x82".into()),
        (
            Pickler::new().op(b"(icollections\nOrderedDict\n").stop(),
            "the pickle asks for an instance of `collections.OrderedDict`".into(),
        ),
        (
            Pickler::new().global("torch", "FloatStorage").op(b"}b").stop(),
            "sets attributes of a function or class (BUILD)".into(),
        ),
        (Pickler::new().op(b"]}b").stop(), "sets attributes of a list (BUILD); nothing is run".into()),
        (Pickler::new().op(b"})b").stop(), "sets attributes of a dict (BUILD); nothing is run".into()),
        // Names made to confuse a terminal.
        (Pickler::new().global("os\x1b[2J", "system").stop(), "the pickle asks for `os\\u{1b}[2J.system`".into()),
        (Pickler::new().global(&"a".repeat(600), "b").stop(), "the pickle holds a name without end".into()),
        (Pickler::new().str("os").op(b"N\x93").stop(), "a function whose name is not a string".into()),
    ];
    // A call deep inside an otherwise sound model.
    let model = Pickler::new().op(b"}(").str("state_dict").dict_of_tensors(&[tensor("a", &[1.0])], false);
    cases.push((call(model.str("x").global("os", "system")).op(b"u").stop(), asks("os.system")));
    for (pickle, expected) in cases {
        let message = pickle_refused(&pickle);
        assert!(message.contains(&expected), "needed {expected}\nfound {message}");
    }
    // Pickles that torch did not write, one of them of the oldest protocol.
    let text = format!("cos\nsystem\n(S'{command}'\ntR.");
    assert!(refused(text.as_bytes()).contains(&asks("os.system")));
    assert!(refused(&call(Pickler::new().global("os", "system")).stop()).contains(&asks("os.system")));
    assert!(refused(&Pickler::new().op(b"N").stop()).contains("it is a pickle, but torch.save did not write it"));
    assert!(!marker.exists(), "something was run");
}

#[test]
fn broken_programs() {
    let new = Pickler::new;
    for (pickle, expected) in [
        (new().0, "the pickle ends in the middle: 1 bytes needed at byte 2, 0 left"),
        (new().stop(), "the pickle takes a value that is not there"),
        (new().op(b"(").stop(), "the pickle takes a value that is not there"),
        (new().op(b"N(").stop(), "the pickle takes a value that is not there"),
        (new().op(b"t").stop(), "the pickle takes a mark that is not there"),
        (new().op(b"h\x07").stop(), "the pickle recalls entry 7, which it never stored"),
        (new().op(b"q\x07").stop(), "the pickle takes a value that is not there"),
        (new().op(b"\x80\x09").stop(), "pickle protocol 9 is not known"),
        (new().op(b"\xff").stop(), "an operation that does not exist (0xff at byte 2)"),
        (new().op(b"I1\n").stop(), "a text operation of protocol 0"),
        (new().op(b"\x8f").stop(), "the pickle holds a set"),
        (new().op(b"NNa").stop(), "the pickle appends to None"),
        (new().op(b"]NNs").stop(), "the pickle sets items of a list"),
        (new().op(b"}(Nu").stop(), "the pickle sets a key without a value"),
        (new().op(b"X\x01\0\0\0\xff").stop(), "a string that is not UTF-8"),
        (new().op(b"NQ").stop(), "a storage is described by None, needed a tuple"),
        (new().op(b")Q").stop(), "a storage's description is too short"),
        (new().op(b"(NNNNNtQ").stop(), "the pickle refers to something outside that is not a storage"),
        (new().global("collections", "OrderedDict").op(b"NR").stop(), "the pickle calls with None, needed a tuple"),
        (
            new().global("torch._utils", "_rebuild_tensor_v2").op(b")R").stop(),
            "a tensor is described by too few arguments",
        ),
        (new().global("torch._utils", "_rebuild_tensor_v2").op(b"(NNNNtR").stop(), "parts of the wrong kind"),
        (
            new().global("torch._utils", "_rebuild_parameter").op(b")R").stop(),
            "a parameter is made of something that is not a tensor",
        ),
    ] {
        let message = pickle_refused(&pickle);
        assert!(message.contains(expected), "needed {expected}\nfound {message}");
    }
    for (pickle, expected) in [
        (new().op(b"N").stop(), "found no dict of tensors in the file"),
        (new().op(b"}").stop(), "found no tensors in the file"),
        (new().op(b"}]Ns").stop(), "found a tensor whose name is not a string"),
        (new().op(b"}").str("a").op(b"]s").stop(), "`a` is not a tensor but lies among them"),
        (new().op(b"}q\x01").str("model").op(b"h\x01s").stop(), "the tensors lie too deep in nested dicts"),
    ] {
        let message = refused(&zip_pth(&pickle));
        assert!(message.contains(expected), "needed {expected}\nfound {message}");
    }
}

/// Small files that ask for a lot.
#[test]
#[ignore = "run in a child process with little memory by the test below"]
fn child_refuses_bombs() {
    let new = Pickler::new;
    let many = |p: Pickler, n: usize, op: &[u8]| p.op(&op.repeat(n));
    let pairs = many(many(new().op(b"]q\x01("), 200_000, b"NN\x86"), 1, b"e");
    for (what, pickle, expected) in [
        (
            "an integer of 2 GiB",
            new().op(b"\x8b\xff\xff\xff\x7f").stop(),
            "an integer of 2147483647 bytes, more than a model needs",
        ),
        ("an integer of -1 bytes", new().op(b"\x8b\xff\xff\xff\xff").stop(), "an integer of 4294967295 bytes"),
        (
            "a string of 2^63 bytes",
            new().op(b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f").stop(),
            "the pickle ends in the middle: 9223372036854775807 bytes needed",
        ),
        ("bytes of 2^64", new().op(b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff").stop(), "the pickle ends in the middle"),
        ("a memo entry of 2^32", new().op(b"Nr\xff\xff\xff\xff0").op(b"N").stop(), "found no dict of tensors"),
        (
            "too many values",
            many(new(), 2_000_000, b"N").stop(),
            "the pickle makes more than 1048576 values, too many for a model",
        ),
        ("too many marks", many(new(), 2_000_000, b"(").stop(), "more than 1048576 values"),
        ("too many copies", many(new().op(b"N"), 2_000_000, b"2").stop(), "more than 1048576 values"),
        ("too many memo entries", many(new().op(b"N"), 2_000_000, b"\x94").stop(), "more than 1048576 values"),
        ("a long pickle", many(new(), 20_000_000, b"N0").stop(), "more than 1048576 values"),
        ("a pickle of 40 MB", many(new(), 20_000_000, b"\x80\x02").stop(), "the pickle is longer than 33554432 bytes"),
        ("nested tuples", many(new().op(b")"), 1_000_000, b"\x85").stop(), "found no dict of tensors"),
        ("tuples of tuples, twice each", many(new().op(b")"), 300_000, b"2\x86").stop(), "found no dict of tensors"),
        ("a list in itself", new().op(b"]q\x01h\x01a").stop(), "found no dict of tensors"),
        ("a dict in itself", new().op(b"}q\x01").str("model").op(b"h\x01s").stop(), "too deep"),
        (
            "a large dict made again and again",
            many(pairs.op(b"0").global("collections", "OrderedDict").op(b"q\x02"), 10_000, b"h\x02h\x01\x85R0")
                .op(b"N")
                .stop(),
            "more than 1048576 values",
        ),
    ] {
        let message = refused(&zip_pth(&pickle));
        assert!(message.contains(expected), "{what}: needed {expected}\nfound {message}");
    }
    // One long name for many tensors.
    let p =
        new().op(b"}").str(&"n".repeat(1 << 20)).op(b"q\x01").tensor("0", &tensor("", &[1.0]), false).op(b"q\x02ss");
    let p = p.op(b"}(").op(&b"h\x01h\x02".repeat(100_000)).op(b"u");
    assert!(refused(&zip_pth(&p.stop())).contains("the pickle takes a value that is not there"));
    let p = new().str(&"n".repeat(1 << 20)).op(b"q\x01").tensor("0", &tensor("", &[1.0]), false).op(b"q\x02");
    let p = p.op(b"}(").op(&b"h\x01h\x02".repeat(100_000)).op(b"u");
    assert!(refused(&zip_pth(&p.stop())).contains("found a tensor whose name has 1048576 bytes, at most 512 are read"));
}

#[test]
#[cfg(unix)]
fn bombs_do_not_go_off() {
    // 512 MiB of address space, program and stacks included.
    files::run_limited("-v 524288", "child_refuses_bombs", &[]).unwrap_or_else(|output| panic!("{output}"));
}
