'use strict';
// The state of the page, what the server tells, and what is typed and clicked.

const state = {
  view: null,
  counters: { edges: [] },
  /** Until when each edge counts as in use. */
  busy: [],
  /** By what makes a flow the same flow. */
  flows: new Map(),
  since: null,
  missed: null,
  containers: null,
  audit: null,
  selected: null,
  segment: '',
  filter: '',
  tab: 'graph',
};

const picture = new Picture(byId('graph'), choose);

/** Draws at most once for everything that comes at the same time. */
let due = false;
function draw() {
  if (due || !state.view) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    showHead(state);
    showAuditCount(state);
    showScene();
    showDetail(state);
    showFlows(state);
  });
}

function showScene() {
  let scene = { grouped: false };
  if (state.tab === 'graph') scene = picture.show(state);
  else if (state.tab === 'audit') showAudit(state, byId('audit'));
  else { scene = sceneOf(state); showMatrix(state, byId('matrix')); }
  const hint = byId('hint');
  hint.hidden = !scene.grouped;
  if (scene.grouped && hint.childElementCount === 0) {
    replace(hint, 'Drawn by segment, since there are many services. Choose a segment to see into it, or ',
      h('button', { onclick: () => setSegment('*') }, 'show every service'), '.');
  }
}

function select(id) {
  const same = state.selected === id;
  state.selected = same ? null : id;
  history.replaceState(null, '', state.selected ? '#' + encodeURIComponent(state.selected) : location.pathname);
  state.containers = null;
  if (state.selected) byId('detail').scrollIntoView({ block: 'nearest' });
  askContainers();
  draw();
}

/** A node was chosen. */
function choose(node) {
  if (node.kind === 'segment') setSegment(node.full);
  else select(node.id);
}

function setSegment(name) {
  state.segment = name;
  byId('segment').value = name;
  picture.zoom(null);
  draw();
}

// ------------------------------------------------------------------------------------------------------ what is told

/** The containers of the selected service. */
async function askContainers() {
  const id = state.selected;
  if (!id || !state.view || !Object.hasOwn(state.view.services, id)) return;
  try {
    const answer = await fetch('/api/service?name=' + encodeURIComponent(id));
    if (!answer.ok) return;
    const { containers } = await answer.json();
    if (state.selected !== id) return;
    state.containers = { id, list: containers };
    draw();
  } catch {
    // The stream notices, too, and comes again.
  }
}

function takeView(view) {
  const edges = (it) => JSON.stringify(it.edges.map((edge) => [edge.from, edge.to, edge.ports]));
  if (state.view && edges(state.view) !== edges(view)) {
    state.busy = [];
    state.counters.edges = [];
  }
  state.view = view;
  const names = [...new Set(Object.keys(view.services).map(segmentOf))].sort();
  const select = byId('segment');
  const many = Object.keys(view.services).length > MOST_SERVICES && names.length > 1;
  const options = [['', many ? 'By segment' : 'All segments'], ...(many ? [['*', 'Every service']] : []), ...names.map((name) => [name, short(name, 30)])];
  const key = JSON.stringify(options);
  if (select.dataset.key !== key) {
    select.dataset.key = key;
    replace(select, options.map(([value, text]) => h('option', { value }, text)));
  }
  if (!options.some(([value]) => value === state.segment)) state.segment = '';
  select.value = state.segment;
  askContainers();
  draw();
}

function takeCounters(counters) {
  const before = state.counters.edges;
  counters.edges.forEach(([packets], index) => {
    const [earlier] = before[index] || [null];
    if (packets !== null && earlier !== null && earlier !== undefined && packets > earlier) state.busy[index] = Date.now() + BUSY;
  });
  state.counters = counters;
  draw();
}

const flowKey = (flow) => JSON.stringify([flow.verdict, flow.direction, flow.from, flow.to, flow.protocol, flow.port, flow.icmp_type, flow.many_ports]);

function takeFlows({ since, missed, flows }) {
  if (state.since !== since) state.flows.clear();
  state.since = since;
  state.missed = missed;
  for (const flow of flows) {
    state.flows.delete(flowKey(flow));
    state.flows.set(flowKey(flow), flow);
  }
  // As many as the server tells at once.
  while (state.flows.size > 2000) state.flows.delete(state.flows.keys().next().value);
  draw();
}

function takeAudit(audit) {
  state.audit = audit;
  draw();
}

function live(on, text) {
  byId('live').className = 'live ' + (on ? 'on' : 'off');
  byId('live-text').textContent = text;
}

function listen() {
  const source = new EventSource('/api/events');
  const on = (name, take) => source.addEventListener(name, (event) => take(JSON.parse(event.data)));
  on('view', takeView);
  on('counters', takeCounters);
  on('flows', takeFlows);
  on('audit', takeAudit);
  source.addEventListener('trouble', (event) => live(false, shown(event.data)));
  source.addEventListener('view', () => live(true, 'live'));
  source.onopen = () => live(true, 'live');
  source.onerror = () => {
    live(false, 'connecting again');
    if (source.readyState === EventSource.CLOSED) {
      source.close();
      setTimeout(listen, 2000);
    }
  };
}

// --------------------------------------------------------------------------------------------- what is typed and clicked

byId('filter').addEventListener('input', (event) => {
  state.filter = event.target.value;
  picture.zoom(null);
  draw();
});
byId('segment').addEventListener('change', (event) => setSegment(event.target.value));
byId('zoom-in').addEventListener('click', () => picture.zoomBy(1.25));
byId('zoom-out').addEventListener('click', () => picture.zoomBy(0.8));
byId('zoom-fit').addEventListener('click', () => picture.zoom(null));
byId('graph').addEventListener('wheel', (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  picture.zoomBy(event.deltaY < 0 ? 1.1 : 0.9);
}, { passive: false });

const TABS = ['graph', 'matrix', 'audit'];

function openTab(name) {
  state.tab = name;
  for (const tab of TABS) {
    byId('tab-' + tab).setAttribute('aria-selected', String(tab === name));
    byId('tab-' + tab).tabIndex = tab === name ? 0 : -1;
    byId(tab).hidden = tab !== name;
  }
  byId('zoom').hidden = name !== 'graph';
  byId('legend').hidden = name !== 'graph';
  draw();
}

for (const [index, tab] of TABS.entries()) {
  byId('tab-' + tab).addEventListener('click', () => openTab(tab));
  byId('tab-' + tab).addEventListener('keydown', (event) => {
    if (!['ArrowLeft', 'ArrowRight'].includes(event.key)) return;
    const step = event.key === 'ArrowRight' ? 1 : TABS.length - 1;
    const other = TABS[(index + step) % TABS.length];
    openTab(other);
    byId('tab-' + other).focus();
  });
}

document.addEventListener('click', (event) => {
  const button = event.target.closest('[data-select], [data-choose], [data-close]');
  if (!button) return;
  const { select: selected, choose: chosen } = button.dataset;
  if (selected !== undefined) select(selected);
  else if (chosen !== undefined) choose(nodeOf(chosen, state.view));
  else select(null);
});

document.addEventListener('keydown', (event) => {
  const typing = event.target.closest('input, select, textarea');
  if (event.key === '/' && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    byId('filter').focus();
  } else if (event.key === 'Escape') {
    if (event.target === byId('filter') && state.filter) {
      byId('filter').value = '';
      state.filter = '';
      draw();
    } else if (state.selected) {
      select(null);
    } else if (state.segment) {
      setSegment('');
    }
  }
});

/** An address may name a service: #shop/web. */
function follow() {
  try {
    state.selected = decodeURIComponent(location.hash.slice(1)) || null;
  } catch {
    state.selected = null;
  }
  state.containers = null;
  askContainers();
  draw();
}
addEventListener('hashchange', follow);
follow();

new ResizeObserver(() => { picture.zoom(picture.scale); draw(); }).observe(byId('graph'));
// Lights go out, and times go on.
setInterval(() => { if (!document.hidden) { refreshTimes(); draw(); } }, 5000);
listen();
