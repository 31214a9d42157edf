//! Adapters by name: which routes know them, and what each of many requests at once is computed with.

use serde_json::{Value, json};

use crate::support::{Server, Setup};
use pelton_serve::ServedAdapter;

/// Tells the alphabet, with `one` a letter further on, with `two` two.
async fn server() -> Server {
    let adapter = |name: &str| ServedAdapter { name: name.to_owned(), root: format!("/adapters/{name}") };
    let mut setup = Setup::alphabet().serve(|config| config.adapters = vec![adapter("one"), adapter("two")]);
    setup.fake.num_adapters = 2;
    setup.start().await
}

fn generate(adapter: Option<&str>) -> Value {
    json!({"inputs": "ab", "parameters": {"max_new_tokens": 3, "adapter_id": adapter}})
}

#[tokio::test]
async fn adapter_id_chooses_on_every_route_of_generate() {
    let server = server().await;
    for (adapter, text) in [(None, "cde"), (Some("one"), "def"), (Some("two"), "efg")] {
        let answer = server.post("/generate", generate(adapter)).await.ok();
        assert_eq!(answer["generated_text"], text);
        let answer = server.post("/", generate(adapter)).await.ok();
        assert_eq!(answer[0]["generated_text"], text);
        let events = server.events("/generate_stream", generate(adapter)).await;
        let last: Value = serde_json::from_str(events.last().expect("an event")).expect("JSON");
        assert_eq!(last["generated_text"], text);
    }
}

#[tokio::test]
async fn an_unknown_adapter_id_is_refused_with_the_known_ones() {
    let server = server().await;
    for path in ["/generate", "/generate_stream", "/"] {
        let answer = server.post(path, generate(Some("three"))).await;
        assert_eq!(answer.status, 422);
        let body = answer.json();
        assert_eq!(body["error"], "Input validation error: `adapter_id` must be one of one, two. Given: three");
        assert_eq!(body["error_type"], "validation");
    }
}

#[tokio::test]
async fn a_model_that_is_an_adapters_name_chooses_it_and_any_other_is_the_model() {
    let server = server().await;
    for (model, text) in [("one", "def"), ("two", "efg"), ("fake", "cde"), ("gpt-4", "cde")] {
        let body = json!({"model": model, "prompt": "ab", "max_tokens": 3});
        let answer = server.post("/v1/completions", body).await.ok();
        assert_eq!((&answer["choices"][0]["text"], &answer["model"]), (&json!(text), &json!(model)));
        let body = json!({"model": model, "messages": [{"role": "user", "content": "ab"}], "max_tokens": 3});
        let chat = server.post("/v1/chat/completions", body).await.ok();
        let content = chat["choices"][0]["message"]["content"].as_str().expect("text").as_bytes().to_vec();
        // The prompt is longer by the template; the letters go on as in the alphabet.
        assert_eq!((content.len(), &chat["model"]), (3, &json!(model)));
    }
    let said = async |model: &str| {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "ab"}], "max_tokens": 1});
        let chat = server.post("/v1/chat/completions", body).await.ok();
        chat["choices"][0]["message"]["content"].as_str().expect("text").as_bytes()[0]
    };
    let (base, one) = (said("fake").await, said("one").await);
    assert_eq!((base - b'a' + 1) % 26, one - b'a', "a letter further on");
}

#[tokio::test]
async fn models_list_adapters_below_their_model() {
    let server = server().await;
    let list = server.get("/v1/models").await.ok();
    let cards: Vec<[&Value; 3]> = list["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|card| [&card["id"], &card["root"], &card["parent"]])
        .collect();
    assert_eq!(
        json!(cards),
        json!([["fake", "fake", null], ["one", "/adapters/one", "fake"], ["two", "/adapters/two", "fake"]])
    );
    assert_eq!(server.get("/v1/models/two").await.ok()["parent"], "fake");
    assert_eq!(server.get("/v1/models/three").await.status, 404);
}

#[tokio::test]
async fn requests_at_once_are_each_computed_with_their_own() {
    let server = server().await;
    let adapters = [None, Some("one"), Some("two")];
    let requests = (0..30).map(|index| server.post("/generate", generate(adapters[index % 3])));
    let answers = futures_util::future::join_all(requests).await;
    for (index, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.ok()["generated_text"], ["cde", "def", "efg"][index % 3], "request {index}");
    }
}
