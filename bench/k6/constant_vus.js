// Constant virtual users: each sends its next request when the last one was answered (a closed loop).
//
//   k6 run -e HOST=127.0.0.1:3000 -e VUS=8 -e DURATION=30s bench/k6/constant_vus.js
//
// The other settings stand in timings.js.
import { generate, setting, summary, summaryTrendStats as trends, thresholds } from './timings.js';

const users = Number(setting('VUS', 8));

export const options = {
  scenarios: {
    constant: { executor: 'constant-vus', vus: users, duration: setting('DURATION', '60s'), gracefulStop: '60s' },
  },
  thresholds: thresholds(),
  summaryTrendStats: trends,
};

export default generate;

export const handleSummary = (data) => summary(data, 'VU', users);
