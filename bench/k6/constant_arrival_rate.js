// A constant rate of requests, whatever the server does (an open loop): the load test of text-generation-inference's repository.
//
//   k6 run -e HOST=127.0.0.1:3000 -e RATE=10 -e VUS=100 -e DURATION=60s bench/k6/constant_arrival_rate.js
//
// RATE is requests per second. A request takes one of VUS users; when all are busy it is dropped and counted. The other settings stand
// in timings.js; those of the original are -e MAX_TIME_PER_TOKEN_MS=90 -e MAX_QUEUE_TIME_MS=1500.
import { generate, setting, summary, summaryTrendStats as trends, thresholds } from './timings.js';

const rate = Number(setting('RATE', 10));

export const options = {
  scenarios: {
    constant: {
      executor: 'constant-arrival-rate',
      // As a whole number of requests in ten minutes: k6 takes no parts of requests.
      rate: Math.round(rate * 600),
      timeUnit: '600s',
      duration: setting('DURATION', '60s'),
      preAllocatedVUs: Number(setting('VUS', 100)),
      gracefulStop: '60s',
    },
  },
  thresholds: thresholds(),
  summaryTrendStats: trends,
};

export default generate;

export const handleSummary = (data) => summary(data, 'rate', rate);
