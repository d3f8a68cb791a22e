//! Keys that are claimed, waited for, left behind and forgotten.

use super::*;

fn kept(text: &str) -> Kept {
    Kept::new(StatusCode::CREATED, &HeaderMap::new(), text)
}

async fn mine(store: &Idempotency, key: &str, body: &str) -> Ticket {
    match store.claim("uid:1", key, "POST /x", body.as_bytes()).await.unwrap() {
        Claim::Mine(ticket) => ticket,
        Claim::Answered(answer) => panic!("answered before: {answer:?}"),
    }
}

#[tokio::test]
async fn the_first_works_and_the_others_get_its_answer() {
    let folder = tempfile::tempdir().unwrap();
    let store = Idempotency::new(folder.path().join("keys"));
    let mut first = mine(&store, "k", "body").await;
    assert_eq!(first.earlier(), &Earlier::Nothing);
    let second = tokio::spawn({
        let store = store.clone();
        async move { store.claim("uid:1", "k", "POST /x", b"body").await.unwrap() }
    });
    // another principal, another key: not held up
    drop(store.claim("uid:2", "k", "POST /x", b"body").await.unwrap());
    drop(mine(&store, "l", "body").await);
    // another body is refused while the first is under way, too
    let refusal = store.claim("uid:1", "k", "POST /x", b"other").await.unwrap_err();
    assert!(refusal.detail().contains("another request"), "{}", refusal.detail());
    first.made(kept("half"));
    assert!(!second.is_finished());
    first.done(kept("whole"));
    assert!(matches!(second.await.unwrap(), Claim::Answered(answer) if answer == kept("whole")));
    assert!(store.claim("uid:1", "k", "POST /y", b"body").await.is_err());
}

#[tokio::test]
async fn a_daemon_that_dies_leaves_what_it_knew() {
    let folder = tempfile::tempdir().unwrap();
    let store = Idempotency::new(folder.path().join("keys"));
    let begun = mine(&store, "begun", "b").await;
    let mut made = mine(&store, "made", "b").await;
    made.made(kept("m"));
    mine(&store, "done", "b").await.done(kept("d"));
    mine(&store, "refused", "b").await.forget();
    std::fs::write(folder.path().join("keys/rubbish"), "x").unwrap();
    // as after SIGKILL: no ticket was dropped
    std::mem::forget((begun, made));
    let store = Idempotency::new(folder.path().join("keys"));
    assert!(matches!(mine(&store, "begun", "b").await.earlier(), Earlier::Begun(_)));
    assert_eq!(mine(&store, "made", "b").await.earlier(), &Earlier::Made(kept("m")));
    assert_eq!(mine(&store, "refused", "b").await.earlier(), &Earlier::Nothing);
    assert!(matches!(store.claim("uid:1", "done", "POST /x", b"b").await.unwrap(), Claim::Answered(_)));
    assert!(!folder.path().join("keys/rubbish").exists());
}

#[tokio::test]
async fn the_oldest_go_first() {
    let folder = tempfile::tempdir().unwrap();
    let most = 30;
    let store = Idempotency { most, ..Idempotency::new(folder.path().join("keys")) };
    for n in 0..most + 20 {
        mine(&store, &n.to_string(), "b").await.done(kept("d"));
    }
    assert_eq!(std::fs::read_dir(folder.path().join("keys")).unwrap().count(), most);
    assert_eq!(mine(&store, "3", "b").await.earlier(), &Earlier::Nothing);
    let last = (most + 19).to_string();
    assert!(matches!(store.claim("uid:1", &last, "POST /x", b"b").await.unwrap(), Claim::Answered(_)));
    // a day later
    let mut known = store.known();
    let old = std::mem::take(&mut known.by_age);
    known.by_age = old.into_iter().map(|((at, name), size)| ((at - KEPT, name), size)).collect();
    store.forget_old(&mut known);
    assert_eq!(known.by_age.len(), 0);
    assert_eq!(known.bytes, 0);
}

#[test]
fn keys_are_sound_or_refused() {
    let with = |text: &[u8]| HeaderMap::from_iter([(KEY, HeaderValue::from_bytes(text).unwrap())]);
    assert_eq!(key(&HeaderMap::new()).unwrap(), None);
    assert_eq!(key(&with(b"abc")).unwrap().as_deref(), Some("abc"));
    assert!(key(&with(b"")).is_err() && key(&with(b"\xff")).is_err() && key(&with(&[b'x'; 256])).is_err());
    let mut twice = with(b"a");
    twice.append(KEY, HeaderValue::from_static("b"));
    assert!(key(&twice).is_err());
    assert_ne!(name("a", "bc"), name("ab", "c"));
}
