// The page's part of the Dreambooth tab: it asks for news while a job runs (also after a reload), tells when one has
// ended, hands the new model over to txt2img, and filters the advanced options. State lives on the server.
(function() {
    if (window.dreamboothPage) return;
    const FAST_MS = 1000, SLOW_MS = 8000;
    const page = window.dreamboothPage = {last: null, job: null, asked: 0, polls: 0};

    const root = () => (typeof gradioApp === 'function' ? gradioApp() : document);
    const byId = (id) => root().querySelector('#' + id);
    const click = (id) => {
        const element = byId(id);
        if (!element) return false;
        (element.tagName === 'BUTTON' ? element : element.querySelector('button') || element).click();
        return true;
    };
    const status = () => {
        const element = root().querySelector('#dreambooth_status .dreambooth-status');
        return element ? element.dataset : null;
    };
    const setText = (id, text) => {
        const field = root().querySelector('#' + id + ' textarea, #' + id + ' input');
        if (!field) return false;
        // The framework listens to the element's own setter.
        const own = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(field), 'value');
        own.set.call(field, text);
        field.dispatchEvent(new Event('input', {bubbles: true}));
        return true;
    };

    // ---- news

    function isBusy(state) {
        return state === 'running' || state === 'queued';
    }

    function ask() {
        const now = Date.now(), data = status();
        if (!data) return;
        const tab = byId('dreambooth_tabs');
        const visible = !document.hidden && tab && tab.offsetParent !== null;
        const every = isBusy(data.state) ? (visible ? FAST_MS : 3 * FAST_MS) : (visible ? SLOW_MS : 4 * SLOW_MS);
        if (now - page.asked >= every - 50) {
            page.asked = now;
            page.polls += 1;
            click('dreambooth_poll');
            if (data.phase === 'comparing') click('dreambooth_choose_poll');
        }
        notice(data);
    }

    function notice(data) {
        const known = page.last;
        page.last = {job: data.job, state: data.state, waiting: data.waiting};
        const another = known && known.job && known.job !== data.job;
        if (known && (known.waiting !== data.waiting || another)) click('dreambooth_runs_poll');
        if (another) click('dreambooth_choose_poll');
        if (isBusy(data.state)) {
            page.title = page.title || document.title;
            const bar = root().querySelector('#dreambooth_status .dreambooth-bar');
            document.title = '[' + (bar ? bar.getAttribute('aria-valuenow') : 0) + '%] ' + page.title;
            return;
        }
        if (page.title) {
            document.title = page.title;
            page.title = null;
        }
        if (known && known.job === data.job && isBusy(known.state)) ended(data);
    }

    function ended(data) {
        click('dreambooth_runs_poll');
        click('dreambooth_choose_poll');
        if (data.state !== 'finished' || !data.published) return;
        const sound = root().querySelector('#audio_notification audio');
        if (sound) sound.play().catch(() => null);
        const tab = byId('dreambooth_tabs');
        const looking = tab && tab.offsetParent !== null;
        if (data.open === 'yes' && looking) openInTxt2img(data);
        else if (data.select === 'yes') refreshCheckpoint();
    }

    // ---- txt2img

    function refreshCheckpoint() {
        click('dreambooth_refresh_checkpoint');
    }

    function openInTxt2img(data) {
        refreshCheckpoint();
        const prompt = root().querySelector('#txt2img_prompt textarea');
        // That of the picture which was chosen, else the run's own.
        const text = page.cellPrompt && page.cellRun === data.name ? page.cellPrompt : data.prompt;
        page.cellPrompt = null;
        // A prompt that somebody typed stays; one of ours may be replaced by the next one.
        if (prompt && text && (prompt.value.trim() === '' || prompt.value === page.prompt)) {
            setText('txt2img_prompt', text);
            page.prompt = text;
        }
        const wanted = root().querySelector('#dreambooth_sample_settings input');
        if (wanted && wanted.checked && data.samples === 'yes') click('dreambooth_apply_sample_settings');
        if (typeof switch_to_txt2img === 'function') switch_to_txt2img();
    }

    // ---- clicks inside HTML that the server made

    document.addEventListener('click', (event) => {
        const element = event.target && event.target.closest ? event.target : null;
        if (!element) return;
        const cell = element.closest('.dreambooth-cell');
        if (cell && setText('dreambooth_choose_cell', cell.dataset.snapshot)) {
            page.cellPrompt = cell.dataset.prompt || null;
            page.cellRun = cell.dataset.run || null;
            setTimeout(() => click('dreambooth_choose_act'), 100);
        }
        const act = element.closest('.dreambooth-act');
        if (act && !act.disabled && setText(act.dataset.into, act.dataset.value)) {
            setTimeout(() => click(act.dataset.then), 100);
        }
        if (element.closest('.dreambooth-open-txt2img')) openInTxt2img(status() || {});
    });

    // ---- search among the advanced options

    document.addEventListener('input', (event) => {
        const box = event.target && event.target.closest ? event.target.closest('#dreambooth_search') : null;
        if (!box) return;
        const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
        root().querySelectorAll('#dreambooth_advanced .dreambooth-option').forEach((option) => {
            const text = (option.textContent + ' ' + option.id).toLowerCase().replaceAll('_', ' ');
            option.classList.toggle('dreambooth-hidden', !words.every((word) => text.includes(word)));
        });
    });

    // ---- start: the tab may be built after this script has run

    const begin = setInterval(() => {
        if (!status() || !byId('dreambooth_opened')) return;
        clearInterval(begin);
        click('dreambooth_opened');
        click('dreambooth_poll');
        page.asked = Date.now();
        setInterval(ask, 250);
    }, 200);
})();
