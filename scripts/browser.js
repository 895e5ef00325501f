// What scripts/browser.py asks of a JupyterLab page; it is there before JupyterLab is.
window.qlib = (() => {
  const panel = () => window.jupyterapp?.shell.currentWidget;
  const kernel = () => panel()?.sessionContext?.session?.kernel;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const cells = () => panel().content.widgets;
  const outputsWith = selector => all('.jp-OutputArea-output', panel().node).filter(out => out.querySelector(selector));

  const CONTROLS = '[role=slider], .widget-toggle-buttons, select, input[type=checkbox], input[type=radio]';
  const explorers = () => outputsWith(`.jupyter-widgets :is(${CONTROLS})`);
  let requests, replies, watched;

  // ------------------------------------------------------------ what is seen

  const words = element => element.textContent.trim().replace(/\s+/g, ' ').slice(0, 80);

  function colour(text) {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return { rgb: [r, g, b], a };
  }

  // The colour behind an element's words: what is see-through lets through what lies below.
  function background(element) {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const layer = colour(getComputedStyle(at).backgroundColor);
      if (layer.a > 0) layers.push(layer);
      if (layer.a === 1) break;
    }
    return layers.reduceRight((below, { rgb, a }) => rgb.map((c, i) => a * c + (1 - a) * below[i]), [255, 255, 255]);
  }

  // WCAG 2's relative luminance and contrast ratio.
  function luminance(rgb) {
    const [r, g, b] = rgb.map(c => c / 255).map(c => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  function contrast(element) {
    const shades = [colour(getComputedStyle(element).color).rgb, background(element)].map(luminance);
    return (Math.max(...shades) + 0.05) / (Math.min(...shades) + 0.05);
  }

  return {
    // The notebook is shown to its last cell and its kernel waits. (The cells out of sight come a little later.)
    ready() {
      if (!panel()?.context?.isReady || kernel()?.status !== 'idle') return false;
      return cells().every(cell => cell.isAttached && (cell.model.type !== 'markdown' || cell.rendered));
    },
    start(command) {
      requests = replies = 0;
      kernel().anyMessage.connect((_, { direction, msg }) => {
        requests += direction === 'send' && msg.header.msg_type === 'execute_request';
        replies += direction === 'recv' && msg.header.msg_type === 'execute_reply';
      });
      void window.jupyterapp.commands.execute(command);
    },
    // All has been sent to the kernel and answered (after a cell that fails the others are not run), and is shown.
    finished() {
      const toRun = cells().filter(cell => cell.model.type === 'code' && cell.model.sharedModel.getSource().trim());
      if (!toRun.length) return true;
      const running = all('.jp-CodeCell .jp-InputPrompt', panel().node).some(prompt => prompt.textContent.includes('*'));
      return requests > 0 && replies >= requests && kernel().status === 'idle' && !running;
    },
    cells: () => panel().content.model.toJSON().cells,
    appendCell(source) {
      const notebook = panel().content.model.sharedModel;
      notebook.insertCell(notebook.cells.length, { cell_type: 'code', source, metadata: {}, outputs: [] });
    },
    async shutDown() {
      await panel().sessionContext.shutdown();
    },
    async theme(name) {
      await window.jupyterapp.commands.execute('apputils:change-theme', { theme: name });
    },

    collapseLeft: () => window.jupyterapp.shell.collapseLeft(),
    themed: light => document.body.dataset.jpThemeLight === String(light),
    // After a change: when JupyterLab has laid the page out anew.
    settled: () => new Promise(done => setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), 300)),

    // Go down to so many pixels below the notebook's beginning; gives the heights of all of it and of what is seen.
    scroll(top) {
      const shown = panel().node.querySelector('.jp-WindowedPanel-outer');
      shown.scrollTop = top;
      return [shown.scrollHeight, shown.clientHeight];
    },

    // ---------------------------------------------------------- figures, widgets, mathematics

    shows(figures, widgets) {
      return this.figures() === figures && this.widgets() >= widgets && this.explorers() <= widgets;
    },
    // How many figures have been drawn; one without a size does not count.
    figures() {
      const drawn = all('.jp-OutputArea-output.jp-RenderedImage img', panel().node);
      return drawn.filter(img => img.naturalWidth > 0 && img.clientWidth > 100 && img.clientHeight > 30).length;
    },
    // How many outputs are widgets, and how many of these can be seen and moved.
    widgets: () => outputsWith('.jupyter-widgets').length,
    explorers: () => explorers().filter(explorer => explorer.clientHeight > 30).length,
    // Cells whose words or outputs say that something could not be shown.
    complaints() {
      const wrong = /Error displaying widget|Error creating widget|Loading widget|Javascript Error|Math Processing Error/;
      const bad = all('.jp-OutputArea-output, .jp-MarkdownOutput', panel().node).filter(
        shown => wrong.test(shown.textContent) || shown.querySelector('mjx-merror, [data-mjx-error]')
      );
      return bad.map(words);
    },
    // Cells with $…$ in which nothing is set as mathematics.
    unsetMath() {
      const source = cell => cell.model.sharedModel.getSource().replace(/```[\s\S]*?```|`[^`]*`/g, '');
      const withMath = cells().filter(cell => cell.model.type === 'markdown' && /\$[^$]+\$/.test(source(cell)));
      return withMath.filter(cell => !cell.node.querySelector('mjx-container')).map(cell => words(cell.node));
    },

    // ---------------------------------------------------------- controls

    controls: explorer =>
      all(CONTROLS, explorers()[explorer]).map(e => e.getAttribute('role') || e.type || 'button'),
    // Put the focus on a control and watch what becomes of the picture and the words once a key goes down.
    watch(explorer, control) {
      const output = explorers()[explorer];
      const found = all(CONTROLS, output)[control];
      const element = found.querySelector('button:not(.mod-active)') ?? found; // of buttons, one that is not down
      const state = () => ({
        picture: all('[aria-hidden=true], img', output).map(shown => shown.src ?? shown.innerHTML).join(),
        words: all('[role=status]', output).map(shown => shown.textContent).join(),
      });
      watched?.observer.disconnect();
      const before = state();
      watched = { from: null, picture: null, words: null, observer: null };
      element.addEventListener('keydown', () => (watched.from ??= performance.now()), { capture: true, once: true });
      const look = () => {
        const now = state();
        for (const part of ['picture', 'words']) if (now[part] !== before[part]) watched[part] ??= performance.now();
      };
      watched.observer = new MutationObserver(look);
      watched.observer.observe(output, { subtree: true, childList: true, attributes: true, characterData: true });
      element.scrollIntoView({ block: 'center' });
      element.focus();
      return document.activeElement === element;
    },
    moved: () => Boolean(watched.picture || watched.words),
    // Milliseconds from the key to the first change, of the picture and of the words; null where nothing changed.
    followed() {
      const after = part => watched[part] && Math.round(watched[part] - watched.from);
      return { picture: after('picture'), words: after('words') };
    },

    // ---------------------------------------------------------- layout

    // What is wider than the place it has, so that it is cut or has to be scrolled: [what, its words, by how much].
    tooWide() {
      const shown = all('.jp-OutputArea-output, .jp-MarkdownOutput, .jp-OutputArea-output pre, .qlib-card', panel().node);
      const parts = all('table, img, svg, mjx-container, .widget-box > *', panel().node);
      const over = shown.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => [e, e.scrollWidth - e.clientWidth]);
      for (const part of parts) {
        const place = part.closest('.jp-OutputArea-output, .jp-MarkdownOutput');
        const extra = place && part.getBoundingClientRect().right - place.getBoundingClientRect().right;
        if (extra > 1) over.push([part, Math.round(extra)]);
      }
      return over.map(([e, extra]) => [e.tagName + '.' + e.className, words(e), extra]);
    },
    // Words too faint on what is behind them: [ratio, colour, words]. WCAG 2 asks for 4.5, and for a mark (✓) for 3.
    tooFaint() {
      const faint = [];
      for (const place of all('.jp-OutputArea-output, .jp-MarkdownOutput', panel().node)) {
        const walker = document.createTreeWalker(place, NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) {
          const element = walker.currentNode.parentElement;
          if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
          if (element.textContent === '■') continue; // a key to a picture, in the picture's colour
          if (element.closest('svg, mjx-container, style, script, .anchor-link, .jp-InternalAnchorLink')) continue;
          if (element.closest('pre code')) continue; // JupyterLab colours source as in its editor
          const ratio = contrast(element);
          if (ratio < (element.textContent.trim().length > 1 ? 4.5 : 3))
            faint.push([Math.round(10 * ratio) / 10, getComputedStyle(element).color, words(element)]);
        }
      }
      return faint;
    },
    // Headings as they stand, by level, which is what the table of contents shows.
    headings: () => all('.jp-MarkdownOutput :is(h1, h2, h3, h4, h5, h6)', panel().node).map(h => Number(h.tagName[1])),
    openDetails: () => all('.jp-MarkdownOutput details[open]', panel().node).map(words),
  };
})();
