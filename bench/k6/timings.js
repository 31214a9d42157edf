// What both load tests share: the request, the timing headers that TGI's and pelton's answers carry, thresholds, and the table.
//
// Settings, by -e NAME=VALUE:
//   HOST            the server, http:// before it unless it says otherwise       127.0.0.1:3000
//   DURATION        length of the test                                          60s
//   MAX_NEW_TOKENS  tokens of each answer                                       60
//   TEMPERATURE     sampling, with TOP_P and SEED; 0 is greedy                   0.2, TOP_P 0.95, SEED 0
//   PROMPT          text of every request; {vu} and {iteration} are filled in    a comment and a function's head
//   MAX_TIME_PER_TOKEN_MS, MAX_QUEUE_TIME_MS   thresholds of the 95th percentiles; without them none
//   SUMMARY         file for k6's own summary as JSON
// A test fails when any answer is neither 200 nor 429, or a threshold is crossed. A user who is told 429 comes back when Retry-After says.
import http from 'k6/http';
import { check, sleep } from 'k6';
import { Counter, Rate, Trend } from 'k6/metrics';

export const setting = (name, other) => (__ENV[name] === undefined || __ENV[name] === '' ? other : __ENV[name]);

const host = setting('HOST', '127.0.0.1:3000');
const url = `${host.includes('://') ? host : `http://${host}`}/generate`;
const prompt = setting('PROMPT', '# the n-th Fibonacci number\ndef fibonacci');
const temperature = Number(setting('TEMPERATURE', 0.2));
const sampling = temperature > 0
  ? { do_sample: true, temperature, top_p: Number(setting('TOP_P', 0.95)), seed: Number(setting('SEED', 0)) }
  : { do_sample: false };
const maxNewTokens = Number(setting('MAX_NEW_TOKENS', 60));

// Headers in whole milliseconds, and the metric that each one feeds.
const timings = {
  'X-Total-Time': new Trend('total_time', true),
  'X-Validation-Time': new Trend('validation_time', true),
  'X-Queue-Time': new Trend('queue_time', true),
  'X-Inference-Time': new Trend('inference_time', true),
  'X-Time-Per-Token': new Trend('time_per_token', true),
};
const generatedTokens = new Counter('generated_tokens');
const overloaded = new Counter('overloaded');
const failed = new Rate('failed');

http.setResponseCallback(http.expectedStatuses(200, 429));

export const summaryTrendStats = ['avg', 'med', 'p(95)', 'max', 'count'];

export function thresholds() {
  const of = (name) => (setting(name) === undefined ? undefined : [`p(95)<${Number(setting(name))}`]);
  const all = {
    failed: ['rate==0'],
    time_per_token: of('MAX_TIME_PER_TOKEN_MS'),
    queue_time: of('MAX_QUEUE_TIME_MS'),
  };
  return Object.fromEntries(Object.entries(all).filter(([, threshold]) => threshold !== undefined));
}

// One request, and what its answer tells.
export function generate() {
  const inputs = prompt.replace('{vu}', __VU).replace('{iteration}', __ITER);
  const body = JSON.stringify({ inputs, parameters: { details: true, max_new_tokens: maxNewTokens, ...sampling } });
  const answer = http.post(url, body, { headers: { 'Content-Type': 'application/json' }, timeout: '300s' });
  failed.add(answer.status !== 200 && answer.status !== 429);
  if (answer.status === 429) {
    overloaded.add(1);
    sleep(Number(answer.headers['Retry-After'] || 1));
    return;
  }
  const good = check(answer, {
    'status is 200': (a) => a.status === 200,
    'has every timing header': (a) => Object.keys(timings).every((name) => a.headers[name] !== undefined),
  });
  if (!good) return;
  // A model may end before its last token: that is told and fails nothing.
  check(answer, { 'has all tokens': (a) => a.json('details.generated_tokens') === maxNewTokens });
  for (const name in timings) timings[name].add(Number(answer.headers[name]));
  generatedTokens.add(Number(answer.headers['X-Generated-Tokens']));
}

// The table of the recipe: `load` is its first cell, as `name` says.
export function summary(data, name, load) {
  const metric = (of) => (data.metrics[of] ? data.metrics[of].values : undefined);
  const p95 = (of) => (metric(of) ? `${metric(of)['p(95)']}ms` : '-');
  const count = (of) => (metric(of) ? metric(of).count : 0);
  const num_failed = metric('failed') ? metric('failed').passes : 0;
  const rate = (of) => (metric(of) ? metric(of).rate.toFixed(2) : '-');
  const table = [
    `| ${name} | time per token (p95) | queue time (p95) | requests/s | tokens/s | answers | 429s | failed | dropped |`,
    '| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |',
    `| ${load} | ${p95('time_per_token')} | ${p95('queue_time')} | ${rate('iterations')} | ${rate('generated_tokens')} | ` +
      `${count('time_per_token')} | ${count('overloaded')} | ${num_failed} | ${count('dropped_iterations')} |`,
    '',
  ].join('\n');
  const files = { stdout: table };
  if (setting('SUMMARY')) files[setting('SUMMARY')] = JSON.stringify(data);
  return files;
}
