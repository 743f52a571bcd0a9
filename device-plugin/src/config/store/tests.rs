use std::{fs, os::unix::fs::symlink};

use super::*;

fn document(text: &str) -> Document {
    Document { name: "a test".to_owned(), bytes: text.as_bytes().to_vec() }
}

#[test]
fn what_is_not_sound_leaves_the_old_in_force() {
    let store = Store::open(None, Overrides::default()).unwrap();
    let mut seen = store.subscribe();
    store.offer(Source::File, Some(document("gpu: {enabled: false}"))).unwrap();
    assert!(seen.has_changed().unwrap());
    assert!(!seen.borrow_and_update().gpu.enabled);

    let why = store.offer(Source::File, Some(document("gpu:\n  enabled: perhaps\n"))).unwrap_err();
    assert!(why.contains("a test") && why.contains("line 2"), "{why}");
    assert!(!seen.has_changed().unwrap());
    assert_eq!(*store.validity().borrow(), Err(why));

    store.offer(Source::File, Some(document("gpu: {enabled: false} # again"))).unwrap();
    assert!(!seen.has_changed().unwrap(), "the same said in another way is no change");
    assert_eq!(*store.validity().borrow(), Ok(()));
}

#[test]
fn the_nodes_own_goes_before_the_file_while_there_is_one() {
    let store = Store::open(None, Overrides::default()).unwrap();
    store.offer(Source::Node, Some(document("gpu: {recoverySeconds: 1}"))).unwrap();
    store.offer(Source::File, Some(document("gpu: {recoverySeconds: 2}"))).unwrap();
    assert_eq!(store.current().gpu.recovery_seconds, 1);
    store.offer(Source::Node, None).unwrap();
    assert_eq!(store.current().gpu.recovery_seconds, 2);
    store.offer(Source::File, None).unwrap();
    assert_eq!(*store.current(), Config::default());
}

#[test]
fn a_check_may_refuse_what_the_text_allows() {
    let check: Check =
        Arc::new(|config| if config.gpu.enabled { Ok(()) } else { Err("GPUs are in use".to_owned()) });
    let store = Store::open(None, Overrides::default()).unwrap().checked_by(check);
    let why = store.offer(Source::File, Some(document("gpu: {enabled: false}"))).unwrap_err();
    assert!(why.contains("a test") && why.ends_with("GPUs are in use"), "{why}");
    assert!(store.current().gpu.enabled);
}

#[tokio::test]
async fn a_file_that_is_replaced_as_the_kubelet_does_it_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let version = |name: &str, text: &str| {
        fs::create_dir(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join("agent.yaml"), text).unwrap();
        symlink(name, folder.path().join("..data_tmp")).unwrap();
        fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).unwrap();
    };
    version("..1", "gpu: {recoverySeconds: 1}");
    let path = folder.path().join("agent.yaml");
    symlink("..data/agent.yaml", &path).unwrap();

    let store = Store::open(Some(&path), Overrides::default()).unwrap();
    let (mut configs, mut validity) = (store.subscribe(), store.validity());
    let stop = CancellationToken::new();
    let following = store.clone().follow(path, stop.clone());
    let changing = async {
        assert_eq!(configs.borrow().gpu.recovery_seconds, 1);
        version("..2", "gpu: {recoverySeconds: 2}");
        configs.wait_for(|config| config.gpu.recovery_seconds == 2).await.unwrap();
        version("..3", "gpu: {recoverySeconds: [}");
        validity.wait_for(Result::is_err).await.unwrap();
        fs::remove_file(folder.path().join("..data")).unwrap();
        validity.wait_for(|now| now.as_ref().is_err_and(|why| why.contains("is gone"))).await.unwrap();
        version("..4", "gpu: {recoverySeconds: 4}");
        configs.wait_for(|config| config.gpu.recovery_seconds == 4).await.unwrap();
        validity.wait_for(Result::is_ok).await.unwrap();
        stop.cancel();
    };
    tokio::join!(following, changing);
}
