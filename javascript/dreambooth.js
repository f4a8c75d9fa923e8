// The page's part of the Dreambooth tab: it asks for news while a job runs (also after a reload), tells when one has
// ended, hands the new model over to txt2img, puts faults under their fields, and filters the advanced options.
// State lives on the server.
(function() {
    if (window.dreamboothPage) return;
    const CONFIRM_AFTER_MS = [800, 3000];
    const FAST_MS = 1000, SLOW_MS = 8000, UPLOAD_AT_MOST_MS = 600000, ANSWER_AT_MOST_MS = 30000, LOST_MS = 5000, TYPED_MS = 150;
    const page = window.dreamboothPage = {last: null, job: null, asked: 0, polls: 0};

    const root = () => (typeof gradioApp === 'function' ? gradioApp() : document);
    const byId = (id) => root().querySelector('#' + id);

    // The framework drops a click on a button whose last one is not answered yet, and while a run goes on answers take their time.
    // What is clicked meanwhile is made up for after the answer, so that the newest one is never missing.
    const unanswered = {};
    const isUnanswered = (id) => Boolean(unanswered[id]) && Date.now() - unanswered[id].since < ANSWER_AT_MOST_MS;
    const click = (id, heard = null) => {
        const element = byId(id);
        if (!element) return false;
        if (isUnanswered(id)) {
            unanswered[id].again = true;
            return true;
        }
        unanswered[id] = {since: Date.now(), again: false, heard};
        (element.tagName === 'BUTTON' ? element : element.querySelector('button') || element).click();
        return true;
    };
    page.answered = (id) => setTimeout(() => {
        const last = unanswered[id] || {};
        delete unanswered[id];
        if (last.heard) last.heard();
        if (last.again) click(id);
    });
    // What is asked for every second can wait for the next one.
    const poll = (id) => isUnanswered(id) || click(id);

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
        if (isUploading(now) && !isBusy(data.state)) return;  // what can wait is asked afterwards
        // A server that is just coming up again is asked as little as possible: AUTOMATIC1111's with --api ends if it is too early.
        if (now - (page.lost || 0) < LOST_MS) return;
        // What was clicked may be about to start something, and an older answer may say otherwise.
        const clicked = now - (page.clicked || 0);
        const usual = isBusy(data.state) || clicked < 2 * SLOW_MS ? FAST_MS : SLOW_MS;
        const every = visible ? (clicked < 2 * FAST_MS ? FAST_MS / 4 : usual) : (usual === FAST_MS ? 3 : 4) * usual;
        if (now - page.asked >= every - 50) {
            page.asked = now;
            page.polls += 1;
            poll('dreambooth_poll');
            if (data.phase === 'comparing') poll('dreambooth_choose_poll');
        }
        notice(data);
        lock(data);
        const form = byId('dreambooth_left'), formSeen = Boolean(visible && form && form.offsetParent !== null);
        if (formSeen && page.formSeen === false) judge();
        page.formSeen = formSeen;
        if (!visible) return;
        showPicked();
        bringUpToDate();
        markChosen();
        confirm();
        askAgain();
        follow();
        placeFaults();
        scrollStrips();
    }

    // What does not depend on the fields alone (the memory that is free, the names that are taken) may be another by now.
    function judge() {
        if (isUploading(Date.now())) page.unjudged = true;
        else click('dreambooth_tell');
    }

    window.addEventListener('focus', () => { if (page.formSeen) judge(); });

    function notice(data) {
        const known = page.last;
        page.last = {job: data.job, state: data.state, waiting: data.waiting, phase: data.phase};
        const another = known && known.job && known.job !== data.job;
        if (known && (known.waiting !== data.waiting || another)) {
            click('dreambooth_runs_poll');
            judge();
        }
        if (another) click('dreambooth_choose_poll');
        // The class images are counted anew while they come, and when they are there.
        const isRendering = (job) => Boolean(job) && isBusy(job.state) && job.phase === 'class images', now = Date.now();
        if (!isRendering(known)) page.counted = now;
        else if (!isRendering(data) || now - page.counted >= SLOW_MS) {
            page.counted = now;
            judge();
        }
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
        const hasSeenItEnd = Boolean(known && known.job === data.job && isBusy(known.state));
        drawCards(data, hasSeenItEnd);
        if (hasSeenItEnd) ended(data, known.phase === 'comparing');
    }

    function ended(data, compared) {
        click('dreambooth_runs_poll');
        click(compared ? 'dreambooth_choose_poll' : 'dreambooth_choose_refresh');  // a run that is new is in its list from now on
        click('dreambooth_tell');
        const wanted = root().querySelector('#dreambooth_sound input');
        if (wanted && wanted.checked) ring();
        const told = data.state === 'finished' ? '✓ ' : '! ';
        if (!document.hasFocus() || document.hidden) {
            const before = document.title;
            document.title = told + data.name + ' ' + (data.state === 'cancelled' ? 'stopped' : data.state);
            window.addEventListener('focus', () => { document.title = before; }, {once: true});
        }
        if (data.state !== 'finished' || !data.published) return;
        const tab = byId('dreambooth_tabs');
        const looking = tab && tab.offsetParent !== null;
        if (data.open === 'yes' && looking) openInTxt2img(data);
        else if (data.select === 'yes') refreshCheckpoint();
    }

    // The WebUI draws its cards of models and LoRAs once, for pages that are opened later, too: it is asked to draw them anew when
    // there is a new one, which may have come while no page was open. Once for each job: where there are many it takes a while.
    const CARDS_OF = 'dreambooth_cards_of';
    const kept = (use) => {
        try {
            return use(localStorage);
        } catch {
            return null;  // a browser that keeps nothing
        }
    };

    function drawCards(data, hasSeenItEnd) {
        if (data.state !== 'finished' || !data.published || page.cards === data.job) return;
        page.cards = data.job;
        if (!hasSeenItEnd && kept((store) => store.getItem(CARDS_OF)) === data.job) return;
        kept((store) => store.setItem(CARDS_OF, data.job));
        ['txt2img', 'img2img'].forEach((tab) => {
            const own = ['lora', 'checkpoints'].map((kind) => byId(tab + '_' + kind + '_extra_refresh_internal')).find(Boolean);
            if (own) own.click();
        });
    }

    // The WebUI's own sound, if it has one; else two notes.
    function ring() {
        const own = root().querySelector('#audio_notification audio');
        if (own) return own.play().catch(() => null);
        const Context = window.AudioContext || window.webkitAudioContext;
        if (!Context) return null;
        const context = new Context();
        [[660, 0], [880, 0.18]].forEach(([pitch, after]) => {
            const tone = context.createOscillator(), volume = context.createGain(), at = context.currentTime + after;
            tone.frequency.value = pitch;
            volume.gain.setValueAtTime(0.2, at);
            volume.gain.exponentialRampToValueAtTime(0.001, at + 0.4);
            tone.connect(volume).connect(context.destination);
            tone.start(at);
            tone.stop(at + 0.4);
        });
        page.rung = (page.rung || 0) + 1;
        return null;
    }

    // ---- while a run goes on, its settings are not to be changed by accident

    function lock(data) {
        const left = byId('dreambooth_left'), told = byId('dreambooth_locked');
        if (!left || !told) return;
        const locked = data.lock === 'yes' && isBusy(data.state) && page.unlocked !== data.job;
        Array.from(told.parentElement.children).forEach((child) => {
            if (child !== told) child.inert = locked;
        });
        left.classList.toggle('dreambooth-is-locked', locked);
        const right = byId('dreambooth_right');
        if (right) right.classList.toggle('dreambooth-idle', !isBusy(data.state));
        const tabs = byId('dreambooth_tabs');
        if (tabs) tabs.classList.toggle('dreambooth-is-comparing', data.phase === 'comparing' && isBusy(data.state));
        // In a narrow window the progress stands below a long form, in a wide one beside its top.
        if (page.pressed && isBusy(data.state)) {
            page.pressed = false;
            const shown = byId('dreambooth_status'), top = shown.getBoundingClientRect().top;
            if (top < 0 || top > window.innerHeight - 100) shown.scrollIntoView({block: 'start'});
        }
    }

    // ---- the runs

    // The tab is built without them, so that the WebUI's start waits for none. Newer frameworks build a part when it is looked at.
    const AT_FIRST = new Set(['dreambooth_runs_poll', 'dreambooth_choose_refresh']);

    function bringUpToDate() {
        AT_FIRST.forEach((button) => { if (click(button)) AT_FIRST.delete(button); });
    }

    // An answer that was asked for before another card was clicked may come after it: what is chosen stands in the list alone.
    function markChosen() {
        const chosen = root().querySelector('#dreambooth_run input');
        if (chosen) root().querySelectorAll('.dreambooth-card').forEach((card) => {
            card.setAttribute('aria-pressed', card.dataset.value === 'pick:' + chosen.value);
        });
    }

    // ---- what the server is still finding out

    const ASK_AGAIN = {dreambooth_review_grid: 'dreambooth_review', dreambooth_picture_detail: 'dreambooth_review_again',
        dreambooth_token_pictures: 'dreambooth_token_show', dreambooth_class_pictures: 'dreambooth_class_look',
        dreambooth_runs: 'dreambooth_runs_poll', dreambooth_runs_doing: 'dreambooth_runs_errand',
        dreambooth_choose_drawing: 'dreambooth_choose_poll'};

    // Answers may overtake each other: once it is quiet, what was typed last is judged again.
    function touched(event) {
        const element = event.target && event.target.closest ? event.target : null;
        if (element && element.closest('#dreambooth_left')) Object.assign(page, {touched: Date.now(), confirmed: 0});
    }
    ['focusout', 'change'].forEach((name) => document.addEventListener(name, touched));

    function confirm() {
        if (!page.touched || Date.now() - page.touched < CONFIRM_AFTER_MS[page.confirmed]) return;
        page.confirmed += 1;
        if (page.confirmed === CONFIRM_AFTER_MS.length) page.touched = 0;
        click('dreambooth_tell');
    }

    function askAgain() {
        const now = Date.now();
        if (now - (page.askedAgain || 0) < FAST_MS - 50) return;
        const buttons = new Set();
        root().querySelectorAll('.dreambooth-pending').forEach((element) => {
            const place = Object.keys(ASK_AGAIN).find((id) => element.closest('#' + id));
            buttons.add(place ? ASK_AGAIN[place] : 'dreambooth_tell');
            if (place === 'dreambooth_class_pictures') buttons.add('dreambooth_tell');  // the step's sentence counts them
        });
        if (buttons.size) page.askedAgain = now;
        buttons.forEach(poll);
    }

    // A picture that was clicked on is shown below the others.
    function showPicked() {
        const shown = byId('dreambooth_picture');
        if (!page.picked || !shown || shown.offsetParent === null) return;
        page.picked = false;
        shown.scrollIntoView({block: 'nearest'});
    }

    // An open Review follows the pictures that are named.
    function follow() {
        const told = byId('dreambooth_note_pictures'), grid = byId('dreambooth_review_grid');
        const text = told ? told.textContent : '';
        if (!grid || grid.offsetParent === null || !text || page.reviewed === text) return;
        page.reviewed = text;
        click('dreambooth_review');
    }

    // ---- faults and warnings, each under its field

    const inputsOf = (field) => Array.from(field.querySelectorAll('input, textarea'));

    // What Train found empty is told until it is filled: no answer about the filled fields may take it away.
    function isFilledNow(fault, field) {
        return Boolean(field && fault.closest('#dreambooth_said') && inputsOf(field).some((input) => input.value.trim() !== ''));
    }

    function placeFaults() {
        const faults = Array.from(root().querySelectorAll('#dreambooth_left [data-option]:is(.dreambooth-fault, .dreambooth-warning)'));
        const fields = faults.map((fault) => byId('dreambooth_' + fault.dataset.option));
        const over = faults.map((fault, index) => isFilledNow(fault, fields[index]));
        const seen = fields.map((field, index) => Boolean(field && field.offsetParent !== null && !over[index]));
        const mark = JSON.stringify(faults.map((fault, index) => [fault.dataset.option, fault.textContent, seen[index], over[index]]));
        const here = root().querySelectorAll('.dreambooth-under-field');
        if (mark === page.faults && here.length === seen.filter(Boolean).length) return;
        page.faults = mark;
        here.forEach((element) => element.remove());
        root().querySelectorAll('.dreambooth-wrong').forEach((field) => {
            field.classList.remove('dreambooth-wrong');
            field.querySelectorAll('[aria-invalid]').forEach((input) => input.removeAttribute('aria-invalid'));
        });
        faults.forEach((fault, index) => {
            fault.classList.toggle('dreambooth-hidden', seen[index] || over[index]);
            if (!seen[index]) return;
            const told = document.createElement('p');
            const isFault = fault.classList.contains('dreambooth-fault');
            told.className = `${isFault ? 'dreambooth-fault' : 'dreambooth-warning'} dreambooth-under-field`;
            told.setAttribute('role', isFault ? 'alert' : 'status');
            told.textContent = Array.from(fault.childNodes).filter((node) => node.nodeName !== 'B')
                .map((node) => node.textContent).join('').trim();
            fields[index].appendChild(told);
            if (!isFault) return;
            fields[index].classList.add('dreambooth-wrong');
            inputsOf(fields[index]).forEach((input) => input.setAttribute('aria-invalid', 'true'));
        });
    }

    // ---- previews: the newest one is in sight

    function scrollStrips() {
        root().querySelectorAll('#dreambooth_previews .dreambooth-strip').forEach((strip) => {
            if (strip.dataset.scrolled) return;
            strip.dataset.scrolled = 'yes';
            strip.scrollLeft = strip.scrollWidth;
        });
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
        fitSize(data.side);
        const wanted = root().querySelector('#dreambooth_sample_settings input');
        if (wanted && wanted.checked && data.samples === 'yes') click('dreambooth_apply_sample_settings');
        if (typeof switch_to_txt2img === 'function') switch_to_txt2img();
    }

    // At txt2img's own 512 px a model of another size draws badly. A size that somebody has set stays.
    function fitSize(side) {
        const sizes = ['txt2img_width', 'txt2img_height'];
        const shown = sizes.map((id) => root().querySelector('#' + id + ' input'));
        if (!side || shown.some((field) => !field || !['512', page.side].includes(field.value))) return;
        sizes.forEach((id) => setText(id, side));
        page.side = side;
    }

    // ---- clicks inside HTML that the server made

    const pause = (ms) => new Promise((done) => setTimeout(done, ms));
    let saying = Promise.resolve();

    // One after the other, each when the one before is answered: several share a field, and the button of the first would send
    // the text of the second.
    function sayThenClick(field, text, button) {
        const say = async () => {
            if (!setText(field, text)) return;
            await pause(100);
            const answer = new Promise((heard) => { if (!click(button, heard)) heard(); });
            await Promise.race([answer, pause(ANSWER_AT_MOST_MS)]);
        };
        saying = saying.then(say, say);
    }

    function act(target) {
        const found = (selector) => target.closest(selector);
        let element;
        if ((element = found('.dreambooth-cell'))) {
            page.cellPrompt = element.dataset.prompt || null;
            page.cellRun = element.dataset.run || null;
            sayThenClick('dreambooth_choose_cell', element.dataset.snapshot, 'dreambooth_choose_act');
        } else if ((element = found('.dreambooth-act'))) {
            if (!element.disabled) sayThenClick(element.dataset.into, element.dataset.value, element.dataset.then);
        } else if (found('.dreambooth-open-txt2img')) openInTxt2img(status() || {});
        else if ((element = found('.dreambooth-shown'))) {
            page.picked = true;
            sayThenClick('dreambooth_review_name', element.dataset.name, 'dreambooth_review_pick');
        }
        else if ((element = found('.dreambooth-toggle'))) sayThenClick('dreambooth_review_name', element.dataset.name, 'dreambooth_review_toggle');
        else if ((element = found('.dreambooth-strike'))) sayThenClick('dreambooth_strike_name', element.dataset.name, 'dreambooth_strike');
        else if ((element = found('#dreambooth_previews img[data-file]'))) sayThenClick('dreambooth_enlarge_which', element.dataset.file, 'dreambooth_enlarge');
        else if (found('.dreambooth-enlarged')) sayThenClick('dreambooth_enlarge_which', '', 'dreambooth_enlarge');
        else if (found('#dreambooth_train')) page.pressed = true;
        else if (found('.dreambooth-unlock')) page.unlocked = (status() || {}).job;
        else return false;
        return true;
    }

    document.addEventListener('click', (event) => {
        if (!event.target || !event.target.closest) return;
        if (event.isTrusted && event.target.closest('#dreambooth_tabs')) page.clicked = Date.now();
        act(event.target);
    });
    document.addEventListener('keydown', (event) => {
        const image = event.target && event.target.closest ? event.target.closest('img[data-file]') : null;
        if (image && (event.key === 'Enter' || event.key === ' ') && act(image)) event.preventDefault();
    });

    // ---- the part of a picture to use, drawn on it

    document.addEventListener('pointerdown', (event) => {
        const whole = event.target && event.target.closest ? event.target.closest('.dreambooth-whole') : null;
        if (!whole || event.button !== 0) return;
        event.preventDefault();
        const frame = whole.getBoundingClientRect(), crop = whole.querySelector('.dreambooth-crop');
        const share = (at, from, length) => Math.min(1, Math.max(0, (at - from) / length));
        const place = (at) => [share(at.clientX, frame.left, frame.width), share(at.clientY, frame.top, frame.height)];
        const start = place(event);
        let end = start;
        const draw = (moved) => {
            end = place(moved);
            const [left, top, right, bottom] = box();
            Object.assign(crop.style, {left: 100 * left + '%', top: 100 * top + '%', width: 100 * (right - left) + '%',
                height: 100 * (bottom - top) + '%'});
        };
        const box = () => [Math.min(start[0], end[0]), Math.min(start[1], end[1]), Math.max(start[0], end[0]), Math.max(start[1], end[1])];
        const done = () => {
            document.removeEventListener('pointermove', draw);
            const sizes = [whole.dataset.width, whole.dataset.height, whole.dataset.width, whole.dataset.height].map(Number);
            const pixels = box().map((each, index) => Math.round(each * sizes[index]));
            if (pixels[2] - pixels[0] < 8 || pixels[3] - pixels[1] < 8) return click('dreambooth_review_again');
            return sayThenClick('dreambooth_picture_box', pixels.join(', '), 'dreambooth_review_cut');
        };
        document.addEventListener('pointermove', draw);
        document.addEventListener('pointerup', done, {once: true});
    });

    // ---- pictures that are given: chosen, dropped or pasted

    // gradio 3, which alone lists files while they are on their way, forgets an upload when an answer to anything else comes
    // meanwhile. Fields are judged afterwards therefore, and what is forgotten all the same is sent again.
    function isUploading(now) {
        const place = byId('dreambooth_upload');
        if (!place || !place.querySelector('.file-preview')) {
            if (page.unjudged) click('dreambooth_tell');
            page.unjudged = false;
            return false;
        }
        if (page.given && page.arrived > page.sent && now - page.arrived > FAST_MS && !place.querySelector('.file-preview a')) {
            place.querySelector('button').click();  // empties the list
            setTimeout(() => send(page.given), 100);
        }
        return now - page.sent < UPLOAD_AT_MOST_MS;
    }

    function send(files) {
        const field = root().querySelector('#dreambooth_upload input[type=file]');
        if (!field) return false;
        const given = new DataTransfer();
        files.forEach((file) => given.items.add(file));
        field.files = given.files;
        field.dispatchEvent(new Event('change', {bubbles: true}));
        return true;
    }

    ['change', 'drop'].forEach((kind) => document.addEventListener(kind, (event) => {
        if (!event.target.closest || !event.target.closest('#dreambooth_upload')) return;
        const files = Array.from((event.dataTransfer || event.target).files || []);
        if (files.length) Object.assign(page, {given: files, sent: Date.now()});
    }, true));

    new PerformanceObserver((seen) => {
        const entries = seen.getEntries();
        if (entries.some((entry) => /\/upload(\?|$)/.test(entry.name))) page.arrived = Date.now();
        if (entries.some((entry) => entry.responseStatus === 0 && /\/run\/predict/.test(entry.name))) page.lost = Date.now();
    }).observe({type: 'resource'});

    document.addEventListener('blur', (event) => {
        const element = event.target.closest ? event.target : null;
        // A list closes when it is left, and nobody is asked about it then.
        if (!element || !element.closest('#dreambooth_tabs') || element.dataset.testid !== 'textbox') return;
        if (!isUploading(Date.now())) return;
        event.stopPropagation();
        page.unjudged = true;
    }, true);

    document.addEventListener('paste', (event) => {
        const step = byId('dreambooth_step_pictures');
        if (!step || step.offsetParent === null || step.closest('[inert]')) return;
        const pictures = Array.from((event.clipboardData || {}).files || []).filter((file) => file.type.startsWith('image/'));
        if (pictures.length && send(pictures)) event.preventDefault();
    });

    // ---- a caption is counted while it is typed

    document.addEventListener('input', (event) => {
        if (!event.target.closest || !event.target.closest('#dreambooth_caption')) return;
        clearTimeout(page.typing);
        page.typing = setTimeout(() => click('dreambooth_caption_count'), TYPED_MS);
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
