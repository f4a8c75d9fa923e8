// News of the job: asked for while it runs, also after a reload; told when it has ended.
(function() {
    const page = window.dreamboothPage;
    if (page.judge) return;
    const {root, byId, click, poll, status, isBusy} = page;
    const FAST_MS = 1000, SLOW_MS = 8000, LOST_MS = 5000;

    function ask() {
        const now = Date.now(), data = status();
        if (!data) return;
        const tab = byId('dreambooth_tabs');
        const visible = !document.hidden && tab && tab.offsetParent !== null;
        if (page.isUploading(now) && !isBusy(data.state)) return;  // what can wait is asked afterwards
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
        page.showPicked();
        page.bringUpToDate();
        page.markChosen();
        page.confirm();
        page.askAgain();
        page.follow();
        page.placeFaults();
        scrollStrips();
    }

    // What does not depend on the fields alone (the memory that is free, the names that are taken) may be another by now.
    function judge() {
        if (page.isUploading(Date.now())) page.unjudged = true;
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
        page.drawCards(data, hasSeenItEnd);
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
        if (data.open === 'yes' && looking) page.openInTxt2img(data);
        else if (data.select === 'yes') page.refreshCheckpoint();
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

    // While a run goes on, its settings are not to be changed by accident.
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

    // The newest preview is in sight.
    function scrollStrips() {
        root().querySelectorAll('#dreambooth_previews .dreambooth-strip').forEach((strip) => {
            if (strip.dataset.scrolled) return;
            strip.dataset.scrolled = 'yes';
            strip.scrollLeft = strip.scrollWidth;
        });
    }

    new PerformanceObserver((seen) => {
        const isLost = (entry) => entry.responseStatus === 0 && /\/run\/predict/.test(entry.name);
        if (seen.getEntries().some(isLost)) page.lost = Date.now();
    }).observe({type: 'resource'});

    // The tab may be built after this script has run.
    const begin = setInterval(() => {
        if (!status() || !byId('dreambooth_opened')) return;
        clearInterval(begin);
        click('dreambooth_opened');
        click('dreambooth_poll');
        page.asked = Date.now();
        setInterval(ask, 250);
    }, 200);

    Object.assign(page, {judge});
})();
