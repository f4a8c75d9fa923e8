// What the form still waits for, or is to judge again: what the server is finding out, and what was typed since.
(function() {
    const page = window.dreamboothPage;
    if (page.askAgain) return;
    const {root, byId, fieldOf, within, click, poll} = page;
    const CONFIRM_AFTER_MS = [800, 3000];
    const AGAIN_MS = 1000, TYPED_MS = 150;

    // The tab is built without them, so that the WebUI's start waits for none. Newer frameworks build a part when it is looked at.
    const AT_FIRST = new Set(['dreambooth_runs_poll', 'dreambooth_choose_refresh']);

    function bringUpToDate() {
        AT_FIRST.forEach((button) => { if (click(button)) AT_FIRST.delete(button); });
    }

    // An answer that was asked for before another card was clicked may come after it: what is chosen stands in the list alone.
    function markChosen() {
        const chosen = fieldOf('dreambooth_run');
        if (chosen) root().querySelectorAll('.dreambooth-card').forEach((card) => {
            card.setAttribute('aria-pressed', card.dataset.value === 'pick:' + chosen.value);
        });
    }

    const ASK_AGAIN = {dreambooth_review_grid: 'dreambooth_review', dreambooth_picture_detail: 'dreambooth_review_again',
        dreambooth_token_pictures: 'dreambooth_token_show', dreambooth_class_pictures: 'dreambooth_class_look',
        dreambooth_runs: 'dreambooth_runs_poll', dreambooth_runs_doing: 'dreambooth_runs_errand',
        dreambooth_choose_drawing: 'dreambooth_choose_poll'};

    // Answers may overtake each other: once it is quiet, what was typed last is judged again.
    ['focusout', 'change'].forEach((name) => document.addEventListener(name, (event) => {
        if (within(event, '#dreambooth_left')) Object.assign(page, {touched: Date.now(), confirmed: 0});
    }));

    function confirm() {
        if (!page.touched || Date.now() - page.touched < CONFIRM_AFTER_MS[page.confirmed]) return;
        page.confirmed += 1;
        if (page.confirmed === CONFIRM_AFTER_MS.length) page.touched = 0;
        click('dreambooth_tell');
    }

    // Whether what is shown of a picture, with all that is in it, is of the one that is open by its name.
    function isOpen(element) {
        const detail = element.closest('.dreambooth-detail'), name = fieldOf('dreambooth_review_open');
        return Boolean(detail && name && detail.dataset.name === name.value);
    }

    // The fields' values from an answer, if it is about the picture that is `meant` still; else, and where it has none, as they are.
    function fill(answer, folder, meant, ...shown) {
        const said = answer ? JSON.parse(answer) : {values: shown.map(() => null)};
        const isMeant = said.name === meant && said.folder === folder;
        return said.values.map((value, index) => (isMeant && value !== null ? value : shown[index]));
    }

    // Whether Choose shows the pictures of another run than the chosen one: an answer about the run before came late.
    function isOfAnotherRun() {
        const grid = byId('dreambooth_choose_grid');
        const chosen = fieldOf('dreambooth_choose_run'), seen = fieldOf('dreambooth_choose_seen');
        if (!grid || grid.offsetParent === null || !chosen || !chosen.value || !seen || !seen.value) return false;
        return JSON.parse(seen.value)[0] !== chosen.value;
    }

    // Whether what is told of the caption is of another one: a count of the picture before came late.
    function isOfAnotherCaption() {
        const counted = root().querySelector('#dreambooth_caption_told .dreambooth-counted');
        const caption = root().querySelector('#dreambooth_caption textarea');
        return Boolean(counted && caption && caption.offsetParent !== null && counted.dataset.text !== caption.value);
    }

    function askAgain() {
        const now = Date.now();
        if (now - (page.askedAgain || 0) < AGAIN_MS - 50) return;
        const buttons = new Set();
        root().querySelectorAll('.dreambooth-pending').forEach((element) => {
            const place = Object.keys(ASK_AGAIN).find((id) => element.closest('#' + id));
            buttons.add(place ? ASK_AGAIN[place] : 'dreambooth_tell');
            if (place === 'dreambooth_class_pictures') buttons.add('dreambooth_tell');  // the step's sentence counts them
        });
        // An answer about the picture before, which came late, stands over the name of this one.
        const detail = root().querySelector('#dreambooth_picture .dreambooth-detail');
        if (detail && detail.offsetParent !== null && !isOpen(detail)) buttons.add('dreambooth_review_again');
        if (isOfAnotherCaption()) buttons.add('dreambooth_caption_count');
        if (isOfAnotherRun()) buttons.add('dreambooth_choose_poll');
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

    // A caption is counted while it is typed.
    document.addEventListener('input', (event) => {
        if (!within(event, '#dreambooth_caption')) return;
        clearTimeout(page.typing);
        page.typing = setTimeout(() => click('dreambooth_caption_count'), TYPED_MS);
    });

    // Search among the advanced options.
    document.addEventListener('input', (event) => {
        if (!within(event, '#dreambooth_search')) return;
        const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
        root().querySelectorAll('#dreambooth_advanced .dreambooth-option').forEach((option) => {
            const text = (option.textContent + ' ' + option.id).toLowerCase().replaceAll('_', ' ');
            option.classList.toggle('dreambooth-hidden', !words.every((word) => text.includes(word)));
        });
    });

    Object.assign(page, {bringUpToDate, markChosen, confirm, askAgain, follow, showPicked, isOpen, fill});
})();
