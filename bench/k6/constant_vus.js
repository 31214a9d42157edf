// Constant virtual users against TGI's /generate, read from the timing headers of the answers.
//
//   k6 run -e URL=http://127.0.0.1:3000 -e VUS=8 -e DURATION=30s bench/k6/constant_vus.js
//
// Each user sends its next request when the last one was answered (a closed loop). The table at the end has the columns of the
// classic recipe: virtual users, time per token (95th percentile), queue time (95th percentile). Times are whole milliseconds, as
// the headers carry them.
import http from 'k6/http';
import { check } from 'k6';
import { Counter, Trend } from 'k6/metrics';

const url = __ENV.URL || 'http://127.0.0.1:3000';
const users = Number(__ENV.VUS || 8);
const maxNewTokens = Number(__ENV.MAX_NEW_TOKENS || 50);

export const options = {
  scenarios: {
    constant: { executor: 'constant-vus', vus: users, duration: __ENV.DURATION || '30s', gracefulStop: '30s' },
  },
  summaryTrendStats: ['avg', 'med', 'p(95)', 'max', 'count'],
};

// Headers in milliseconds, and the metric each one feeds.
const timings = {
  'X-Total-Time': new Trend('total_time', true),
  'X-Validation-Time': new Trend('validation_time', true),
  'X-Queue-Time': new Trend('queue_time', true),
  'X-Inference-Time': new Trend('inference_time', true),
  'X-Time-Per-Token': new Trend('time_per_token', true),
};
const generatedTokens = new Counter('generated_tokens');
const overloaded = new Counter('overloaded');

export default function () {
  const body = JSON.stringify({
    inputs: `# user ${__VU}, round ${__ITER}\ndef fibonacci(n):`,
    parameters: { max_new_tokens: maxNewTokens, do_sample: false },
  });
  const answer = http.post(`${url}/generate`, body, { headers: { 'Content-Type': 'application/json' } });
  if (answer.status === 429) {
    overloaded.add(1);
    return;
  }
  const good = check(answer, {
    'status is 200': (a) => a.status === 200,
    'has every timing header': (a) => Object.keys(timings).every((name) => a.headers[name] !== undefined),
  });
  if (!good) return;
  for (const name in timings) timings[name].add(Number(answer.headers[name]));
  generatedTokens.add(Number(answer.headers['X-Generated-Tokens']));
}

export function handleSummary(data) {
  const p95 = (name) => (data.metrics[name] ? `${data.metrics[name].values['p(95)']} ms` : 'none');
  const count = (name) => (data.metrics[name] ? data.metrics[name].values.count : 0);
  const table = [
    '| virtual users | time per token, p95 | queue time, p95 | requests | generated tokens/s | 429s |',
    '| ---: | ---: | ---: | ---: | ---: | ---: |',
    `| ${users} | ${p95('time_per_token')} | ${p95('queue_time')} | ${count('iterations')} | ` +
      `${data.metrics.generated_tokens ? data.metrics.generated_tokens.values.rate.toFixed(1) : 0} | ${count('overloaded')} |`,
    '',
  ].join('\n');
  const files = { stdout: table };
  if (__ENV.SUMMARY) files[__ENV.SUMMARY] = JSON.stringify(data);
  return files;
}
