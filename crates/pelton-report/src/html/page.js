'use strict';
// Draws the figures of this page with uPlot. A figure is what pelton_report::charts::Figure writes as JSON.
(() => {
  const figures = JSON.parse(document.getElementById('figures').textContent);
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const light = {
    nth: ['#0072b2', '#d55e00', '#008f68', '#b0578d', '#c98500', '#2f9bd1', '#4d4d4d'],
    shades: [[68, 1, 84], [62, 74, 137], [38, 130, 142], [53, 183, 121], [132, 172, 32]],
    failure: '#c1121f', quiet: '#b3b3b3', ink: '#5b6472', grid: '#e6e9ed',
  };
  const night = {
    nth: ['#56b4e9', '#ff8c42', '#3ec99a', '#e39ac4', '#e6b34a', '#8fd3ff', '#c0c0c0'],
    shades: [[122, 90, 200], [92, 125, 215], [60, 170, 190], [90, 210, 140], [220, 220, 80]],
    failure: '#ff6b6b', quiet: '#7a828e', ink: '#9aa4b2', grid: '#282e37',
  };
  const colours = () => (dark.matches ? night : light);
  const colour = (of) => {
    const now = colours();
    if (typeof of === 'string') return now[of];
    if (of.nth !== undefined) return now.nth[of.nth % now.nth.length];
    const at = Math.min(Math.max(of.shade, 0), 1) * (now.shades.length - 1);
    const low = now.shades[Math.floor(at)];
    const high = now.shades[Math.ceil(at)];
    return `rgb(${low.map((value, n) => Math.round(value + (high[n] - value) * (at % 1))).join(',')})`;
  };
  const plain = (value) => {
    const size = Math.abs(value);
    if (size >= 1e6) return +(value / 1e6).toPrecision(4) + 'M';
    if (size >= 1e4) return +(value / 1e3).toPrecision(4) + 'k';
    return String(+value.toPrecision(4));
  };
  const written = (axis, value) => {
    if (value == null) return '–';
    if (axis.shares) return `${plain(100 * value)} %`;
    return axis.unit ? `${plain(value)} ${axis.unit}` : plain(value);
  };
  const title = (axis) => (axis.unit ? `${axis.label} (${axis.unit})` : axis.label);

  // Ends of a scale: as set, or a little more than the values.
  const range = (axis) => (u, min, max) => {
    if (axis.scale === 'log') {
      if (!(min > 0)) [min, max] = [1, 10];
      if (max <= min) [min, max] = [min / 2, max * 2];
      const air = (max / min) ** 0.03;
      return [axis.from > 0 ? axis.from : min / air, axis.to > 0 ? axis.to : max * air];
    }
    if (min == null) [min, max] = [0, 1];
    const air = 0.04 * (max - min);
    let low = axis.from ?? (min >= 0 ? Math.max(min - air, 0) : min - air);
    let high = axis.to ?? max + air;
    if (high <= low) [low, high] = low === 0 ? [0, 1] : [low - Math.abs(low) / 2, low + Math.abs(low) / 2];
    return [low, high];
  };

  // Powers of ten, with 2 and 5 where there is room; plain steps in a short span.
  const logMarks = (u, index, min, max) => {
    const axis = u.axes[index];
    const length = (axis.side % 2 ? u.bbox.height : u.bbox.width) / devicePixelRatio;
    const room = Math.max(2, Math.floor(length / (axis.side % 2 ? 26 : 48)));
    if (max / min < 3) {
      const rough = (max - min) / Math.min(room, 6);
      const power = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 5, 10].map((digit) => digit * power).find((step) => step >= rough);
      const marks = [];
      for (let mark = Math.ceil(min / step) * step; mark <= max; mark += step) marks.push(mark);
      return marks;
    }
    const marks = (digits) => {
      const all = [];
      for (let power = Math.floor(Math.log10(min)); power <= Math.ceil(Math.log10(max)); power++) {
        all.push(...digits.map((digit) => digit * 10 ** power));
      }
      return all.filter((mark) => mark >= min * 0.999 && mark <= max * 1.001);
    };
    const fine = marks([1, 2, 5]);
    return fine.length <= room ? fine : marks([1]);
  };

  const linked = new Map(); // Link -> charts whose zoom goes together.

  function draw(element) {
    const figure = figures[element.dataset.figure];
    const now = colours();
    const spans = figure.series.some((series) => series.kind === 'spans');
    const isLog = (side) => figure.y[side]?.scale === 'log';
    const tables = figure.series.map((series) => {
      if (series.kind === 'spans') {
        const ends = series.data.flatMap((span) => [span[0], span[1]]);
        return [[Math.min(...ends), Math.max(...ends)], [undefined, undefined]];
      }
      let points = series.data.filter((point) => (figure.x.scale !== 'log' || point[0] > 0) && (!isLog(series.side) || point[1] > 0));
      if (series.kind === 'steps') {
        // Equal places of a step are one place: the highest.
        points = points.filter((point, n) => n + 1 === points.length || points[n + 1][0] !== point[0]);
      }
      return [points.map((point) => point[0]), points.map((point) => point[1])];
    });
    const data = uPlot.join(tables);

    const scales = { x: { time: false, distr: figure.x.scale === 'log' ? 3 : 1 } };
    const given = range(figure.x);
    scales.x.range = (u, min, max) => (u.zoomed ? [min, max] : given(u, min, max));
    const font = '12px system-ui, sans-serif';
    const quiet = { stroke: now.ink, font, labelFont: font, labelSize: 18, ticks: { stroke: now.grid, size: 4 }, grid: { stroke: now.grid, width: 1 } };
    const axes = [{ ...quiet, label: element.dataset.last === undefined ? undefined : title(figure.x), size: 34, values: (u, marks) => marks.map((mark) => (mark == null ? '' : plain(mark))), grid: { show: false }, space: 60 }];
    if (figure.x.marks.length) {
      axes[0].splits = (u, index, min, max) => figure.x.marks.filter((mark) => mark >= min && mark <= max);
      axes[0].filter = (u, marks) => {
        // Marks that would cover the one before are not written.
        let free = -Infinity;
        return marks.map((mark) => {
          const at = u.valToPos(mark, 'x');
          if (at < free) return null;
          free = at + 34;
          return mark;
        });
      };
    } else if (figure.x.scale === 'log') {
      axes[0].splits = logMarks;
      axes[0].filter = (u, marks) => marks;
    }
    figure.y.forEach((axis, side) => {
      if (!axis) return;
      const key = `y${side}`;
      scales[key] = { distr: axis.scale === 'log' ? 3 : 1, range: range(axis), dir: spans ? -1 : 1 };
      const mine = figure.series.filter((series) => series.side === side);
      const stroke = side > 0 && mine.length === 1 ? colour(mine[0].colour) : now.ink;
      const shown = { ...quiet, scale: key, side: side === 0 ? 3 : 1, stroke, label: title(axis), size: 52, space: 34, values: (u, marks) => marks.map((mark) => (mark == null ? '' : axis.shares ? `${plain(100 * mark)} %` : plain(mark))) };
      if (side > 0) shown.grid = { show: false };
      if (axis.scale === 'log') Object.assign(shown, { splits: logMarks, filter: (u, marks) => marks });
      if (axis.marks.length) shown.splits = () => axis.marks;
      if (axis.bare) Object.assign(shown, { values: () => [], grid: { show: false }, ticks: { show: false } });
      axes.push(shown);
    });

    const series = [{ label: figure.x.label, value: (u, value) => written(figure.x, value) }];
    figure.series.forEach((of) => {
      const stroke = colour(of.colour);
      const shown = { label: of.name, scale: `y${of.side}`, stroke, width: 2, points: { show: false }, value: (u, value) => written(figure.y[of.side], value) };
      if (of.dashed) shown.dash = [7, 4];
      if (of.kind === 'dotted-line') shown.points = { show: true, size: 7, fill: stroke };
      if (of.kind === 'dots') Object.assign(shown, { paths: () => null, width: 0, points: { show: true, size: of.data.length > 100 ? 4 : 7, fill: stroke } });
      if (of.kind === 'steps') shown.paths = uPlot.paths.stepped({ align: 1 });
      if (of.kind === 'spans') Object.assign(shown, { paths: () => null, fill: stroke, value: () => '' });
      series.push(shown);
    });

    const greyed = (u) => {
      u.ctx.save();
      u.ctx.fillStyle = getComputedStyle(document.documentElement).getPropertyValue('--grey');
      figure.greyed.forEach(([from, to]) => {
        const left = Math.max(u.valToPos(from, 'x', true), u.bbox.left);
        const right = Math.min(u.valToPos(to, 'x', true), u.bbox.left + u.bbox.width);
        if (right > left) u.ctx.fillRect(left, u.bbox.top, right - left, u.bbox.height);
      });
      u.ctx.restore();
    };
    // What uPlot has no form for: error bars and spans.
    const rest = (u) => {
      const ctx = u.ctx;
      ctx.save();
      ctx.beginPath();
      ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
      ctx.clip();
      figure.series.forEach((of, n) => {
        if (!u.series[n + 1].show) return;
        const key = `y${of.side}`;
        if (of.kind === 'spans') {
          const high = Math.max((u.valToPos(1, key, true) - u.valToPos(0, key, true)) * 0.8, 1);
          ctx.fillStyle = colour(of.colour);
          of.data.forEach(([from, to, place]) => {
            const left = u.valToPos(from, 'x', true);
            ctx.fillRect(left, u.valToPos(place, key, true) - high / 2, Math.max(u.valToPos(to, 'x', true) - left, 1), high);
          });
          return;
        }
        ctx.strokeStyle = colour(of.colour);
        ctx.lineWidth = 1.3 * devicePixelRatio;
        const half = 4 * devicePixelRatio;
        ctx.beginPath();
        of.data.forEach(([x, , low, high]) => {
          if (low === undefined) return;
          const at = u.valToPos(x, 'x', true);
          const [down, up] = [u.valToPos(low, key, true), u.valToPos(high, key, true)];
          ctx.moveTo(at, down);
          ctx.lineTo(at, up);
          for (const end of [down, up]) {
            ctx.moveTo(at - half, end);
            ctx.lineTo(at + half, end);
          }
        });
        ctx.stroke();
      });
      ctx.restore();
    };

    const tip = document.createElement('div');
    tip.className = 'tip';
    const tell = (u) => {
      const { left, top } = u.cursor;
      if (!spans || left < 0) return void (tip.style.display = 'none');
      const place = Math.round(u.posToVal(top, 'y0'));
      const parts = figure.series.flatMap((of) => of.data.filter((span) => span[2] === place).map((span) => `${of.name} ${plain(span[1] - span[0])} s`));
      tip.style.display = parts.length ? 'block' : 'none';
      tip.textContent = parts.join(', ');
      tip.style.left = `${Math.min(left + 14, u.over.clientWidth - tip.offsetWidth)}px`;
      tip.style.top = `${top + 14}px`;
    };

    // A zoom of one chart is that of all with its link.
    const zoom = (u, key) => {
      if (key !== 'x' || !figure.link || u.following) return;
      const { min, max } = u.scales.x;
      for (const other of linked.get(figure.link) ?? []) {
        if (other === u || (other.scales.x.min === min && other.scales.x.max === max)) continue;
        other.following = true;
        other.zoomed = u.zoomed;
        other.batch(() => other.setScale('x', { min, max }));
        other.following = false;
      }
    };
    const options = {
      width: element.clientWidth || 800,
      height: Math.max(figure.height - 40, 170),
      scales, axes, series,
      legend: { show: figure.series.length > 1 || !spans, markers: { fill: (u, n) => (n > 0 ? colour(figure.series[n - 1].colour) : null), stroke: (u, n) => (n > 0 ? colour(figure.series[n - 1].colour) : null) } },
      cursor: { drag: { x: true, y: false }, sync: figure.link ? { key: figure.link, scales: ['x', null] } : undefined, points: { show: !spans } },
      hooks: { drawClear: [greyed], draw: [rest], setCursor: [tell], setSelect: [(u) => { u.zoomed = u.select.width > 0; }], setScale: [zoom] },
    };
    element.replaceChildren();
    const chart = new uPlot(options, data, element);
    chart.over.append(tip);
    chart.over.addEventListener('dblclick', () => { chart.zoomed = false; }, true);
    if (figure.link) linked.set(figure.link, [...(linked.get(figure.link) ?? []), chart]);
    element.chart = chart;
  }

  // What is folded away is drawn when it is opened: a page may hold many runs.
  const plots = [...document.querySelectorAll('.plot')];
  const drawSeen = () => plots.forEach((plot) => plot.chart || plot.offsetParent === null || draw(plot));
  document.querySelectorAll('details').forEach((details) => details.addEventListener('toggle', drawSeen));
  drawSeen();
  const again = () => {
    linked.clear();
    plots.filter((plot) => plot.chart).forEach((plot) => { plot.chart.destroy(); draw(plot); });
  };
  dark.addEventListener('change', again);
  let waiting;
  addEventListener('resize', () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => plots.forEach((plot) => plot.chart?.setSize({ width: plot.clientWidth, height: plot.chart.height })), 100);
  });
})();
