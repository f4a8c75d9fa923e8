// Clicks inside HTML that the server made, and the part of a picture to use, which is drawn on it.
(function() {
    const page = window.dreamboothPage;
    if (page.act) return;
    const {within, click, status, sayThenClick} = page;

    function act(target) {
        const found = (selector) => target.closest(selector);
        let element;
        if ((element = found('.dreambooth-cell'))) {
            page.cellPrompt = element.dataset.prompt || null;
            page.cellRun = element.dataset.run || null;
            sayThenClick('dreambooth_choose_cell', element.dataset.run + '/' + element.dataset.snapshot, 'dreambooth_choose_act');
        } else if ((element = found('.dreambooth-act'))) {
            if (!element.disabled) sayThenClick(element.dataset.into, element.dataset.value, element.dataset.then);
        } else if (found('.dreambooth-open-txt2img')) page.openInTxt2img(status() || {});
        else if ((element = found('.dreambooth-shown'))) {
            page.picked = true;
            sayThenClick('dreambooth_review_name', element.dataset.name, 'dreambooth_review_pick');
        }
        else if ((element = found('.dreambooth-toggle'))) sayThenClick('dreambooth_review_other', element.dataset.name, 'dreambooth_review_toggle');
        else if ((element = found('.dreambooth-strike'))) sayThenClick('dreambooth_strike_name', element.dataset.name, 'dreambooth_strike');
        else if ((element = found('#dreambooth_previews img[data-file]'))) sayThenClick('dreambooth_enlarge_which', element.dataset.file, 'dreambooth_enlarge');
        else if (found('.dreambooth-enlarged')) sayThenClick('dreambooth_enlarge_which', '', 'dreambooth_enlarge');
        else if (found('#dreambooth_train')) page.pressed = true;
        else if (found('.dreambooth-unlock')) page.unlocked = (status() || {}).job;
        else return false;
        return true;
    }

    document.addEventListener('click', (event) => {
        if (event.isTrusted && within(event, '#dreambooth_tabs')) page.clicked = Date.now();
        if (event.target && event.target.closest) act(event.target);
    });
    document.addEventListener('keydown', (event) => {
        const image = within(event, 'img[data-file]');
        if (image && (event.key === 'Enter' || event.key === ' ') && act(image)) event.preventDefault();
    });

    document.addEventListener('pointerdown', (event) => {
        const whole = within(event, '.dreambooth-whole');
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
            // When its turn comes: another picture may have been picked, whose own is not shown yet.
            return sayThenClick('dreambooth_picture_box', pixels.join(', '), 'dreambooth_review_cut', () => page.isOpen(whole));
        };
        document.addEventListener('pointermove', draw);
        document.addEventListener('pointerup', done, {once: true});
    });

    Object.assign(page, {act});
})();
