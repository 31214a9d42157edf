// Streamed completions, read as whole bodies: what k6 costs as a client. k6 has no reader of events.
//
//   k6 run -e URL=http://127.0.0.1:3000 -e VUS=32 -e REQUESTS=320 -e PROMPT=64 -e OUTPUT=64 -e MODEL=fake bench/k6/stream_cost.js
import http from 'k6/http';
import { check } from 'k6';

export const options = {
  scenarios: {
    shared: { executor: 'shared-iterations', vus: Number(__ENV.VUS), iterations: Number(__ENV.REQUESTS), maxDuration: '10m' },
  },
};

const words = 'word '.repeat(Number(__ENV.PROMPT) - 2);

export default function () {
  const body = JSON.stringify({
    model: __ENV.MODEL,
    prompt: `${__VU} ${__ITER} ${words}`,
    max_tokens: Number(__ENV.OUTPUT),
    ignore_eos: true,
    stream: true,
  });
  const answer = http.post(`${__ENV.URL}/v1/completions`, body, { headers: { 'Content-Type': 'application/json' } });
  check(answer, { 'status is 200': (a) => a.status === 200 });
}
