use std::{fs, sync::Mutex};

use tokio::sync::mpsc;

use super::*;
use crate::node::{events, tests::seen};

fn files(names: &[&str]) -> BTreeMap<String, Vec<u8>> {
    names.iter().map(|name| ((*name).to_owned(), Vec::new())).collect()
}

#[test]
fn the_label_goes_first_then_the_default_then_what_is_there() {
    let file = |name: &str| Choice::File(name.to_owned());
    let both = files(&["a", "b"]);
    assert_eq!(choose(Some("b"), Some("a"), &both), file("b"));
    assert_eq!(choose(Some(""), Some("a"), &both), file("a"));
    assert_eq!(choose(None, Some("a"), &both), file("a"));
    assert_eq!(choose(None, None, &both), Choice::CommandLine);
    assert_eq!(choose(None, None, &files(&["a"])), file("a"));
    assert_eq!(choose(None, None, &files(&["a", "default"])), file("default"));
    assert_eq!(choose(None, None, &files(&[])), Choice::CommandLine);
    for (label, default) in [(Some("c"), Some("a")), (None, Some("c")), (Some("../a"), None)] {
        let Choice::Stay(why) = choose(label, default, &both) else { panic!("{label:?} {default:?}") };
        assert!(why.contains("only: a, b"), "{why}");
    }
}

#[tokio::test]
async fn label_and_folder_are_followed_without_a_restart() {
    // As the kubelet lays a ConfigMap out: links into a folder that is replaced as a whole.
    let root = tempfile::tempdir().unwrap();
    let write = |version: &str, texts: &[(&str, &str)]| {
        let data = root.path().join(version);
        fs::create_dir(&data).unwrap();
        for (name, text) in texts {
            fs::write(data.join(name), text).unwrap();
        }
        std::os::unix::fs::symlink(version, root.path().join("..data_tmp")).unwrap();
        fs::rename(root.path().join("..data_tmp"), root.path().join("..data")).unwrap();
    };
    write("..1", &[("a", "first"), ("b", "other")]);
    for name in ["a", "b"] {
        std::os::unix::fs::symlink(format!("..data/{name}"), root.path().join(name)).unwrap();
    }
    let (accepted, mut choices) = mpsc::unbounded_channel();
    let refuse = Arc::new(Mutex::new(None));
    let refusal = refuse.clone();
    let (sink, mut queue) = events::channel();
    let selection = Selection {
        label: "config".to_owned(),
        folder: root.path().to_owned(),
        default: Some("a".to_owned()),
        accept: Arc::new(move |choice| {
            if let Some(why) = refusal.lock().unwrap().clone() {
                return Err(why);
            }
            let choice = choice.map(|(name, text)| (name, String::from_utf8(text).unwrap()));
            accepted.send(choice).map_err(|_| "closed".to_owned())
        }),
        events: sink,
        chosen: watch::Sender::new(false),
    };
    let (node, node_seen) = watch::channel(Some(seen("uid", &[])));
    let chosen = |name: &str, text: &str| Some(Some((name.to_owned(), text.to_owned())));
    let story = async {
        assert_eq!(choices.recv().await, chosen("a", "first"));
        node.send_replace(Some(seen("uid", &[("config", "b")])));
        assert_eq!(choices.recv().await, chosen("b", "other"));
        node.send_replace(Some(seen("uid", &[("config", "nonsense")])));
        let told = queue.next_note().await;
        assert!(told.contains("\"nonsense\""), "{told}");
        node.send_replace(Some(seen("uid", &[])));
        assert_eq!(choices.recv().await, chosen("a", "first"));
        write("..2", &[("a", "second"), ("b", "other")]);
        assert_eq!(choices.recv().await, chosen("a", "second"));

        *refuse.lock().unwrap() = Some("line 1: no".to_owned());
        node.send_replace(Some(seen("uid", &[("config", "b")])));
        let told = queue.next_note().await;
        assert!(told.contains("line 1: no"), "{told}");
    };
    tokio::select! {
        () = selection.keep(node_seen) => panic!("it ended"),
        () = story => {}
    }
}
