//! Fields that do something: each is seen to do it, on the routes of text-generation-inference and of OpenAI.

use http::StatusCode;
use serde_json::{Value, json};

use crate::support::{END_OF_TEXT, Server, Setup, letters, parse, whole};

async fn generated(server: &Server, parameters: Value) -> Value {
    server.post("/generate", json!({"inputs": "abc", "parameters": parameters})).await.ok()
}

fn mean(sequence: &Value) -> f64 {
    let tokens = sequence["tokens"].as_array().expect("tokens");
    tokens.iter().map(|token| token["logprob"].as_f64().expect("a number")).sum::<f64>() / tokens.len() as f64
}

#[tokio::test]
async fn best_of_answers_the_sequence_of_the_highest_mean() {
    let server = Setup::alphabet().serve(|serve| serve.max_best_of = 4).start().await;
    // At this heat every other token is the scripted one.
    let parameters =
        json!({"best_of": 4, "do_sample": true, "temperature": 11.5, "max_new_tokens": 6, "details": true});
    let mut have_differed = false;
    for _ in 0..8 {
        let details = generated(&server, parameters.clone()).await["details"].clone();
        let losers = details["best_of_sequences"].as_array().expect("losers");
        assert_eq!(losers.len(), 3);
        for loser in losers {
            assert!(mean(&details) >= mean(loser), "{details}");
            have_differed |= mean(&details) > mean(loser);
            // Any token may be drawn, end of text too.
            let num_tokens = loser["tokens"].as_array().map(Vec::len);
            assert_eq!(loser["generated_tokens"].as_u64().map(|count| count as usize), num_tokens);
            let is_cut = loser["finish_reason"] == "length";
            assert!(if is_cut { num_tokens == Some(6) } else { loser["finish_reason"] == "eos_token" }, "{loser}");
            assert!(loser["seed"].is_u64() && loser["prefill"] == json!([]) && loser.get("top_tokens").is_none());
        }
    }
    assert!(have_differed);
}

#[tokio::test]
async fn sampling_parameters_change_what_is_drawn() {
    let server = Setup::alphabet().start().await;
    let hot = async |extra: Value| {
        let mut parameters = json!({"do_sample": true, "temperature": 100, "seed": 5, "max_new_tokens": 6});
        parameters.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        generated(&server, parameters).await["generated_text"].clone()
    };
    let plain = hot(json!({})).await;
    assert_eq!(
        hot(json!({"top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0, "frequency_penalty": 0})).await,
        plain
    );
    for change in [
        json!({"seed": 6}),
        json!({"temperature": 0.1}),
        json!({"top_k": 1}),
        json!({"top_p": 0.1}),
        json!({"typical_p": 0.1}),
    ] {
        assert_ne!(hot(change.clone()).await, plain, "{change}");
    }
    // Every other token is the scripted one, unless it is made less likely for having been seen.
    let warm = async |extra: Value| {
        let mut parameters = json!({"temperature": 11.5, "seed": 5, "max_new_tokens": 60});
        parameters.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        let body = json!({"inputs": letters(0, 26), "parameters": parameters});
        server.post("/generate", body).await.ok()["generated_text"].clone()
    };
    let plain = warm(json!({"repetition_penalty": 1.0, "frequency_penalty": 0.0})).await;
    for change in [json!({"repetition_penalty": 100.0}), json!({"frequency_penalty": 2.0})] {
        assert_ne!(warm(change.clone()).await, plain, "{change}");
    }
}

#[tokio::test]
async fn full_text_details_and_top_tokens_come_when_they_are_asked_for() {
    let server = Setup::alphabet().start().await;
    let answer = generated(&server, json!({"max_new_tokens": 2, "return_full_text": true, "truncate": 1})).await;
    assert_eq!(
        answer,
        json!({"generated_text": "abcbc"}),
        "the whole input stands before the text, whatever was truncated"
    );
    let details = generated(&server, json!({"max_new_tokens": 2, "details": true})).await["details"].clone();
    let keys: Vec<_> = details.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["finish_reason", "generated_tokens", "seed", "prefill", "tokens"]);
    assert_eq!(details["prefill"], json!([]));
    for count in [1, 5] {
        let parameters = json!({"max_new_tokens": 2, "details": true, "top_n_tokens": count});
        let top = generated(&server, parameters).await["details"]["top_tokens"].clone();
        for (position, list) in top.as_array().expect("a list for each token").iter().enumerate() {
            let list = list.as_array().expect("alternatives");
            assert_eq!((list.len(), &list[0]["text"]), (count, &json!(letters(3 + position, 1))));
            let logprobs: Vec<_> = list.iter().map(|token| token["logprob"].as_f64().expect("a number")).collect();
            assert!(logprobs.is_sorted_by(|a, b| a >= b), "{list:?}");
        }
    }
    let prefill =
        generated(&server, json!({"max_new_tokens": 1, "decoder_input_details": true})).await["details"]["prefill"]
            .clone();
    assert_eq!(prefill.as_array().map(Vec::len), Some(3), "which asks for details by itself");
}

#[tokio::test]
async fn absent_limit_fills_the_context() {
    let server = Setup::alphabet().start().await;
    let body = json!({"inputs": "a".repeat(1000), "parameters": {"details": true}});
    let details = server.post("/generate", body).await.ok()["details"].clone();
    assert_eq!((&details["generated_tokens"], &details["finish_reason"]), (&json!(24), &json!("length")));
}

#[tokio::test]
async fn streams_show_special_tokens_and_leave_them_out_of_the_text() {
    let server = Setup::telling([97, 98, 99, 100, END_OF_TEXT]).start().await;
    let body = json!({"inputs": "abc", "parameters": {"max_new_tokens": 9, "details": true, "top_n_tokens": 1}});
    let events: Vec<_> = server.events("/generate_stream", body).await.iter().map(|event| parse(event)).collect();
    assert_eq!((&events[0]["token"]["special"], &events[0]["details"]), (&json!(false), &Value::Null));
    assert_eq!(events[1]["token"]["text"], "<|endoftext|>");
    assert_eq!((&events[1]["token"]["special"], &events[1]["generated_text"]), (&json!(true), &json!("d")));
    assert_eq!(events[1]["details"]["generated_tokens"], 2);
}

#[tokio::test]
async fn texts_of_refusals_are_those_that_clients_know() {
    let server = Setup::alphabet().start().await;
    for (parameters, text) in [
        (json!({"best_of": 3, "do_sample": true}), "`best_of` must be > 0 and <= 2. Given: 3"),
        (json!({"best_of": 2}), "you must use sampling when `best_of` is > 1"),
        (json!({"best_of": 2, "top_k": 2, "seed": 1}), "`seed` must not be set when `best_of` > 1"),
        (json!({"temperature": 0}), "`temperature` must be strictly positive. Given: 0"),
        (json!({"repetition_penalty": 0}), "`repetition_penalty` must be strictly positive and <= 100. Given: 0"),
        (json!({"frequency_penalty": 2.5}), "`frequency_penalty` must be >= -2.0 and <= 2.0. Given: 2.5"),
        (json!({"top_p": 1.5}), "`top_p` must be > 0.0 and <= 1.0. Given: 1.5"),
        (json!({"typical_p": 0}), "`typical_p` must be > 0.0 and <= 1.0. Given: 0"),
        (json!({"top_k": 0}), "`top_k` must be strictly positive. Given: 0"),
        (json!({"max_new_tokens": 0}), "`max_new_tokens` must be strictly positive. Given: 0"),
        (json!({"stop": vec!["x"; 17]}), "`stop` supports up to 16 stop sequences. Given: 17"),
        (json!({"top_n_tokens": 6}), "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
        (json!({"truncate": 1024}), "`truncate` must be strictly positive and less than 1024. Given: 1024"),
        (
            json!({"max_new_tokens": 1022}),
            "`inputs` tokens + `max_new_tokens` must be <= 1024. Given: 3 `inputs` tokens and 1022 `max_new_tokens`",
        ),
    ] {
        let answer = server.post("/generate", json!({"inputs": "abc", "parameters": parameters})).await;
        let body = json!({"error": format!("Input validation error: {text}"), "error_type": "validation"});
        assert_eq!((answer.status, answer.json()), (StatusCode::UNPROCESSABLE_ENTITY, body));
    }
    generated(&server, json!({"truncate": 1023, "max_new_tokens": 1})).await;
    generated(&server, json!({"max_new_tokens": 1021, "stop": vec!["x"; 16], "top_n_tokens": 5})).await;
}

/// Names of the headers that begin with `x-`, in order.
async fn headers(server: &Server, path: &str, body: Value) -> Vec<String> {
    let (response, _connection) = server.open(path, body).await;
    let answer = whole(response).await;
    let mut names: Vec<_> =
        answer.headers.keys().map(|name| name.to_string()).filter(|name| name.starts_with("x-")).collect();
    names.sort();
    names
}

#[tokio::test]
async fn headers_are_on_the_routes_that_have_them() {
    let server = Setup::alphabet().start().await;
    let generate = json!({"inputs": "abc", "parameters": {"max_new_tokens": 2}});
    let chat = json!({"messages": [{"role": "user", "content": "ab"}], "max_tokens": 2});
    let completion = json!({"prompt": ["abc", "ab"], "max_tokens": 2});
    let all = [
        "x-compute-characters",
        "x-compute-time",
        "x-compute-type",
        "x-generated-tokens",
        "x-inference-time",
        "x-prompt-tokens",
        "x-queue-time",
        "x-time-per-token",
        "x-total-time",
        "x-validation-time",
    ];
    for (path, body) in [
        ("/generate", &generate),
        ("/", &generate),
        ("/invocations", &generate),
        ("/v1/chat/completions", &chat),
        ("/v1/completions", &completion),
    ] {
        assert_eq!(headers(&server, path, body.clone()).await, all, "{path}");
    }
    for (path, body) in [
        ("/generate_stream", &generate),
        ("/", &generate),
        ("/v1/chat/completions", &chat),
        ("/v1/completions", &completion),
    ] {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let of_a_stream = ["x-accel-buffering", "x-compute-characters", "x-compute-type"];
        assert_eq!(headers(&server, path, body).await, of_a_stream, "{path}");
    }
    for (path, body) in [
        ("/tokenize", generate.clone()),
        ("/chat_tokenize", chat),
        ("/vertex", json!({"instances": [generate]})),
        ("/generate", json!({"inputs": ""})),
    ] {
        assert!(headers(&server, path, body).await.is_empty(), "{path}");
    }
    let answer = server.post("/v1/completions", completion).await;
    assert_eq!(
        ["x-compute-characters", "x-prompt-tokens", "x-generated-tokens"].map(|name| answer.header(name).to_owned()),
        ["5", "5", "4"]
    );
}

#[tokio::test]
async fn browsers_of_other_origins_may_call() {
    let preflight = async |server: &Server, origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type,authorization"),
        ];
        let (response, _connection) = server.send("OPTIONS", "/generate", &headers, bytes::Bytes::new()).await;
        whole(response).await
    };
    let open = Setup::alphabet().serve(|serve| serve.api_key = Some("secret".into())).start().await;
    let answer = preflight(&open, "http://page.example").await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (StatusCode::OK, "*"));
    assert_eq!(answer.header("access-control-allow-methods"), "GET,POST");
    assert_eq!(answer.header("access-control-allow-headers"), "content-type,authorization");

    let closed =
        Setup::alphabet().serve(|serve| serve.cors_allow_origin = vec!["http://page.example".into()]).start().await;
    assert_eq!(
        preflight(&closed, "http://page.example").await.header("access-control-allow-origin"),
        "http://page.example"
    );
    assert!(!preflight(&closed, "http://other.example").await.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn every_generating_route_wants_the_key() {
    let server = Setup::alphabet().serve(|serve| serve.api_key = Some("secret".into())).start().await;
    for path in [
        "/",
        "/generate",
        "/generate_stream",
        "/tokenize",
        "/chat_tokenize",
        "/invocations",
        "/vertex",
        "/v1/completions",
        "/v1/chat/completions",
    ] {
        assert_eq!(server.post(path, json!({})).await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    for path in ["/", "/health", "/ping", "/info", "/metrics", "/v1/models", "/openapi.json", "/api-doc/openapi.json"] {
        assert_eq!(server.get(path).await.status, StatusCode::OK, "{path}");
    }
}

#[cfg(feature = "swagger-ui")]
#[tokio::test]
async fn the_page_of_the_routes_is_served_whole() {
    let server = Setup::alphabet().start().await;
    assert_eq!(server.get("/docs").await.header("location"), "/docs/");
    let page = server.get("/docs/").await;
    let page = std::str::from_utf8(&page.body).expect("text").to_owned();
    assert!(page.contains("swagger-ui") && !page.contains("http://") && !page.contains("https://"), "{page}");
    for file in ["swagger-ui.css", "swagger-ui-bundle.js", "swagger-initializer.js"] {
        assert_eq!(server.get(&format!("/docs/{file}")).await.status, StatusCode::OK, "{file}");
    }
    assert_eq!(server.get("/openapi.json").await.ok()["openapi"], "3.1.0");
}
